"""Where the loop of the forward process runs: NumPy on the CPU, kernels on a GPU.

Imports method/, bundle/, util/, errors.
"""
