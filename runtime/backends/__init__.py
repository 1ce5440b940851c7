"""Where the loop runs: NumPy on the CPU, kernels on a GPU. Imports method/, bundle/ and below."""
