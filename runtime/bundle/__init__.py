"""What a model is to the runtime: networks, calibrations and engines, checked by their hashes.

Imports method/, refine/, volume/, util/, errors.
"""
