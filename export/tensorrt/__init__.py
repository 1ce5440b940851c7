"""TensorRT engines: built, verified against the FP32 network, and reported on. No torch."""
