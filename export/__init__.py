"""Checkpoint -> ONNX -> a bundle that was verified against PyTorch."""
