"""The loop on an NVIDIA GPU: kernels around ONNX Runtime (FP32) or a TensorRT engine (FP16).

Imports bundle/ (engines), method/, and the NumPy loop of cpu/ for ablations.
"""
