"""The forward process on an NVIDIA GPU. Nothing here is imported before a GPU is asked for."""
