"""From an ONNX file to a graph that passes can trust, and back."""
