"""onnx-tailor: fit an ONNX language model that somebody else exported, without going back to PyTorch."""

__version__ = "0.1.0"
