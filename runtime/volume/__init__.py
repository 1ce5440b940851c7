"""Voxels in, slices on the model's grid out, and masks back. Imports method/, util/, errors."""
