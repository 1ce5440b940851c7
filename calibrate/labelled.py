"""Labelled slices that fit a bundle."""

from __future__ import annotations

from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.errors import CohortError
from anofpdm.train.dataset import SliceSet


def fitting(slices: SliceSet, bundle: Bundle) -> SliceSet:
    """The slices, if they are on the bundle's grid with its modalities.

    Raises
    ------
    CohortError
        If they are not.
    """
    wanted = (bundle.manifest.modalities, bundle.manifest.grid)
    if (slices.modalities, slices.grid) != wanted:
        raise CohortError(
            f"the slices hold {', '.join(slices.modalities)} on {slices.grid}, the bundle wants "
            f"{', '.join(wanted[0])} on {wanted[1]}: prepare them again"
        )
    return slices


def check_spacing(slices: SliceSet, neighbours_mm: float) -> None:
    """Raise CohortError if neighbours are to count and the slices do not say how far they are
    apart, as those that were prepared by an earlier version."""
    if neighbours_mm and not all(record.slice_mm for record in slices.records):
        raise CohortError(
            "the slices do not say how far they are apart, which neighbours need: prepare them "
            "again"
        )
