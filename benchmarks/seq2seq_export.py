"""Export BART-base's shape with random weights by optimum-onnx: `python seq2seq_export.py FOLDER`, in 4 GB of memory.

In an environment of its own, as tests/exporters/README.md describes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from optimum.exporters.onnx import onnx_export_from_model
from transformers import BartConfig, BartForConditionalGeneration


def main(folder: Path) -> None:
    """Write encoder_model.onnx and three decoders into `folder`."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    shape = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 50265}
    widths = {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    heads = {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
    model = BartForConditionalGeneration(BartConfig(**shape, **widths, **heads)).eval()
    onnx_export_from_model(model, folder, task="text2text-generation-with-past", do_validation=False, device="cpu")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
