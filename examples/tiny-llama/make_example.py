"""Make the example model: gather text, train a tokenizer and a Llama, export and check."""

import argparse
import json
import shutil
from pathlib import Path

import corpus
import export
import torch
import training
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

SEED = 0
LIMIT_BYTES = 8_000_000


def main() -> None:
    """Run every step; a work folder that already holds a trained model is exported again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the packages and the trained model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the example")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("--minutes", type=float, default=13.0, help="time to train")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)

    texts = corpus.gather(options.work / "text")
    trained = options.work / "hf"
    if not (trained / "config.json").exists():
        train(texts, trained, options.minutes)
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    options.out.mkdir(parents=True, exist_ok=True)
    written = write(texts, tokenizer, trained, options.out, options.dtype)
    assert_no_local_paths(written, options.work)
    assert sum(each.stat().st_size for each in written) <= LIMIT_BYTES or options.dtype == "fp32"


def train(texts: corpus.Corpus, trained: Path, minutes: float) -> None:
    """Write the tokenizer and the fp32 model to `trained`, in the form of transformers."""
    tokenizer = training.train_tokenizer(texts.training)
    model = training.new_model()
    training.train(model, training.encode(tokenizer, texts.training), minutes, SEED)
    model.save_pretrained(trained)
    tokenizer.save(str(trained / "tokenizer.json"))


def write(texts: corpus.Corpus, tokenizer: Tokenizer, trained: Path, out: Path, dtype: str) -> list[Path]:
    """Export to `out` with the companions, print the measurements as JSON and return the files."""
    reference = LlamaForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    held_back = training.encode(tokenizer, texts.held_back)
    figures: dict[str, object] = {
        "parameters": sum(each.numel() for each in reference.parameters()),
        "training_tokens": len(training.encode(tokenizer, texts.training)),
        "held_back_tokens": len(held_back),
        "perplexity_torch_fp32": training.perplexity(reference, held_back),
    }
    target = out / "model.onnx"
    torch_dtype = torch.float16 if dtype == "fp16" else torch.float32
    model = LlamaForCausalLM.from_pretrained(trained, dtype=torch_dtype).eval()
    export.export(model, target)
    figures |= export.check(reference, target, held_back[1:129].reshape(2, 64))
    figures[f"perplexity_onnx_{dtype}"] = export.perplexity(target, held_back.numpy(), training.CONTEXT)
    print(json.dumps(figures, indent=1))

    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    shutil.copyfile(trained / "tokenizer.json", out / "tokenizer.json")
    (out / "held-back.txt").write_text("\n\n".join(texts.held_back) + "\n")
    names = ("model.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json")
    return [out / name for name in (*names, "held-back.txt")]


def assert_no_local_paths(files: list[Path], work: Path) -> None:
    """Hold that no file names a folder of the machine it was made on."""
    packages, checkout = Path(torch.__file__).parents[1], Path(__file__).resolve().parents[2]
    folders = (Path.home(), checkout, work.resolve(), packages)
    here = [*map(str, folders), "site-packages"]
    for file in files:
        data = file.read_bytes()
        found = [each for each in here if each.encode() in data]
        assert not found, f"{file} names {found}"


if __name__ == "__main__":
    main()
