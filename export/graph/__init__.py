"""Rows and folded weights as an ONNX graph: writing it, simplifying it."""
