"""The NumPy loop; the network by ONNX Runtime (FP32) or OpenVINO (bfloat16). Imports method/."""
