"""Bundles whose slices visit other timesteps than those that were calibrated for."""

from __future__ import annotations

from dataclasses import replace

from anofpdm.runtime.bundle.bundle import Bundle


def with_process(bundle: Bundle, encoding: str, L: int, stride: int) -> Bundle:
    """The bundle with one calibration, for this process: every slice goes to L. Its thresholds are
    those of the default one, so that masks mean nothing but cost what they cost."""
    held = replace(
        bundle.calibrations[bundle.default],
        conditions=bundle.conditions(encoding, L, stride),
        early_stop=None,
        healthy_leave=None,
        plausibility=None,
    )
    return replace(bundle, calibrations={"one": held}, default="one")
