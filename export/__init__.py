"""Export of a checkpoint to a verified bundle; imports ``runtime`` and ``train``."""
