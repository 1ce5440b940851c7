"""Everything that looks at labelled slices: calibration and evaluation."""
