"""Calibration and evaluation on labelled slices; imports ``runtime``, and a module each of
``train`` (the slices) and ``export`` (writing to the bundle)."""
