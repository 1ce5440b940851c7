"""The NumPy loop, and the network by ONNX Runtime (FP32) or OpenVINO (bfloat16)."""
