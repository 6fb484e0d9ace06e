"""The families of the matrix: tiny configurations and random weights that let mistakes show.

Every weight is random, norms and biases too, so that a lost bias or a row out of place changes the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY, HIDDEN, INNER, LAYERS = 384, 64, 96, 2
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# family: (class of the model, class of its configuration, options beyond the library's defaults)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "tie_word_embeddings": True}),
    "llama-untied": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 16, "tie_word_embeddings": True}),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**_DECODER, "original_max_position_embeddings": 128, "tie_word_embeddings": False},
    ),
    "phi4": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            **_DECODER,
            "hidden_size": 256,  # rows of whole blocks of 128; heads whose rotated part ONNX Runtime's attention takes
            "original_max_position_embeddings": 128,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_DECODER, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 16,
            "d_ff": INNER,
            "num_layers": LAYERS,
            "num_decoder_layers": LAYERS,
            "num_heads": 4,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**_SEQ2SEQ, "max_position_embeddings": 128}),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 1500, "max_target_positions": 64},
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_DECODER, **_EXPERTS, "head_dim": 16, "tie_word_embeddings": False},
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _ENCODER),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {
            **_DECODER,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
    ),
    # What follows differs from the families above in one way that a rewrite could get wrong: biases, caps and factors
    # of logits, parallel blocks, packed projections of other orders, relative positions, several tables.
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_DECODER, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_DECODER, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_DECODER, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, "final_logit_softcapping": 9.0},
    ),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **_DECODER,
            "tie_word_embeddings": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_DECODER, "logit_scale": 0.25, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**_DECODER, "tie_word_embeddings": False}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**_DECODER, "tie_word_embeddings": True}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**_DECODER, "use_qkv_bias": True}),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", {**_DECODER, "tie_word_embeddings": True}),
    "phi": ("PhiForCausalLM", "PhiConfig", {**_DECODER, "hidden_size": 128, "tie_word_embeddings": False}),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_DECODER, "num_key_value_heads": 4, "tie_word_embeddings": False},
    ),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 8, "tie_word_embeddings": False}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "ffn_dim": INNER,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
    ),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "multi_query": True,
            "tie_word_embeddings": True,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **_DECODER,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_DECODER,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "tie_word_embeddings": False,
        },
    ),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**_ENCODER, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "hidden_dim": INNER,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**_ENCODER, "embedding_size": 32}),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**_ENCODER, "embedding_size": 32}),
    "marian": (
        "MarianMTModel",
        "MarianConfig",
        {**_SEQ2SEQ, "max_position_embeddings": 128, "decoder_vocab_size": VOCABULARY, "forced_eos_token_id": 2},
    ),
    "m2m100": ("M2M100ForConditionalGeneration", "M2M100Config", {**_SEQ2SEQ, "max_position_embeddings": 128}),
    "mt5": (
        "MT5ForConditionalGeneration",
        "MT5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 16,
            "d_ff": INNER,
            "num_layers": LAYERS,
            "num_decoder_layers": LAYERS,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
        },
    ),
}
ENCODERS = frozenset({"bert", "modernbert", "roberta", "distilbert", "electra", "albert"})
EAGER = frozenset({"t5", "bart", "whisper", "marian", "m2m100", "mt5", "gpt2", "gpt-oss", "gemma2", "gptj", "bloom"})
WITHOUT_CACHE = frozenset({"lfm2", "falcon", "deepseek-v3", "bloom"})
"""Decoders whose states are not keys and values of as many heads as the configuration says."""
SEQ2SEQ = frozenset({"t5", "bart", "whisper", "marian", "m2m100", "mt5"})


def build(family: str, dtype: str, *, inner: int = INNER) -> Any:
    """Return the model of a family in eval mode, the same on every call."""
    class_name, config_name, options = FAMILIES[family]
    sizes = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")
    replaced = {key: inner for key in sizes if key in options}
    config = getattr(transformers, config_name)(**{**options, **replaced})
    config._experts_implementation = "batched_mm"  # the one that torch.onnx knows
    config._attn_implementation = (
        "eager" if family in SEQ2SEQ | {"gpt2", "gpt-oss", "gemma2", "gptj", "bloom"} else "sdpa"
    )
    torch.manual_seed(20)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a tied weight comes once
            noise = torch.randn(parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(0.08 * noise)
            else:  # norms stay near their neutral value, whichever it is, and biases near 0
                parameter.add_(0.15 * noise)
        for name, buffer in model.named_buffers():
            if "logits_bias" in name:
                buffer.copy_(0.3 * torch.randn(buffer.shape))
    model.tie_weights()
    return model.to(DTYPES[dtype])
