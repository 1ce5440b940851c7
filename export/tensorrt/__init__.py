"""TensorRT engines: build, progress, verification against the FP32 network. Needs no torch."""
