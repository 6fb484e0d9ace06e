"""`python -m onnx_tailor` is the same command as `onnx-tailor`."""

from onnx_tailor.cli import main

main()
