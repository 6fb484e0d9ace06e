"""The tokenizer and the model: byte-pair encoding and a small Llama with tied embeddings."""

import math
import sys
import time
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 4096
CONTEXT = 256
BATCH = 8
PEAK_RATE = 3e-3
WARMUP_STEPS = 100
END = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Learn a byte-level BPE of VOCABULARY tokens; token 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> torch.Tensor:
    """Return the token ids [tokens] of all documents, an END before each and after the last."""
    ids = [0]
    for encoding in tokenizer.encode_batch(list(documents)):
        ids += [*encoding.ids, 0]
    return torch.tensor(ids)


def new_model() -> LlamaForCausalLM:
    """Return an untrained Llama of 2.4 million parameters, a third of them in the table."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = True
    return model


def train(model: LlamaForCausalLM, ids: torch.Tensor, minutes: float, seed: int) -> None:
    """Train on random windows of ids [tokens] for so many minutes of wall time.

    AdamW; the rate rises over WARMUP_STEPS and falls along a cosine to a fiftieth of its peak.
    The length is set in time, so that a slower machine makes a weaker model rather than a longer wait.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = [each for each in model.parameters() if each.dim() > 1]
    gains = [each for each in model.parameters() if each.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    model.train()
    step, start, done = 0, time.monotonic(), 0.0
    while done < 1:
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=generator)
        batch = torch.stack([ids[at : at + CONTEXT] for at in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        decayed = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * decayed
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        done = (time.monotonic() - start) / (60 * minutes)
        if step % 50 == 0:
            print(f"step {step}, {done:.0%} of the time, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Return exp of the mean negative log-likelihood per token over windows of CONTEXT tokens."""
    total, count = 0.0, 0
    for at in range(0, len(ids) - 1, CONTEXT - 1):
        window = ids[at : at + CONTEXT][None]
        predicted = window.shape[1] - 1
        total += model(input_ids=window, labels=window).loss.item() * predicted
        count += predicted
    return math.exp(total / count)
