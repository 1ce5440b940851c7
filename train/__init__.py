"""Plain PyTorch: cohorts -> prepared slices -> a trained U-Net."""
