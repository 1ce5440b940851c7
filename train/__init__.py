"""Training in plain PyTorch, from a cohort to a checkpoint; imports ``runtime`` only."""
