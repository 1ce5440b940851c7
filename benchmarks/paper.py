"""A bundle by the paper's rules alone, whatever its calibrations add to them."""

from __future__ import annotations

from dataclasses import replace

from anofpdm.runtime.bundle.bundle import Bundle


def as_in_the_paper(bundle: Bundle) -> Bundle:
    """Each slice alone, the way round it is, and cut by Algorithm 1: for what compares slices that
    are not neighbours, or the paper's rules themselves."""
    plain = {
        name: replace(
            one, threshold="algorithm-1", neighbours_mm=0.0, flip_tta=False, guided_mm=0.0
        )
        for name, one in bundle.calibrations.items()
    }
    return replace(bundle, calibrations=plain)
