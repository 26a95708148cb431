"""Write and simplify ONNX graphs of folded checkpoints."""
