"""Calibration and evaluation on labelled slices; imports ``runtime`` and ``train.dataset``."""
