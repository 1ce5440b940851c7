"""Planes in order: one evenly spaced stack, or a reason why they are none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from .planes import Plane

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# Two planes closer than this are at one position.
_SAME_MM = 0.01
# How far cosines, and spacings relatively, may differ within a stack: they are rounded texts.
_COSINES, _SPACINGS = 1e-3, 1e-3
# How uneven slices may be: a part of their spacing; more where positions are rounded to 0.1 mm.
_UNEVEN, _ROUNDED, _ROUNDED_MM = 0.05, 0.25, 0.2
# How far a stack may lean, in pixels from its first to its last slice.
_LEAN_PIXELS = 0.5


def in_order(planes: Sequence[Plane], where: Path) -> list[Plane]:
    """Planes of one orientation and pixel spacing, sorted along their normal.

    Only positions count, never file names or numbers in the series.

    Raises
    ------
    VolumeError
        If they are not one evenly spaced stack.
    """
    if len(planes) < 2:
        raise VolumeError(f"{where} holds one slice of a series: name the folder of all its images")
    first = planes[0]
    orientations: list[Plane] = []
    for plane in planes:
        if not any(_parallel(plane, other) for other in orientations):
            orientations.append(plane)
    if len(orientations) > 1:
        raise VolumeError(
            f"{where} holds images of {len(orientations)} orientations, as a localizer does: "
            "give a series of parallel slices"
        )
    spacing = (first.down_mm, first.across_mm)
    for plane in planes:
        if not np.allclose((plane.down_mm, plane.across_mm), spacing, rtol=_SPACINGS, atol=0):
            raise VolumeError(
                f"{where} holds images of different PixelSpacing: give one series of one resolution"
            )
    if len({plane.header.text("FrameOfReferenceUID") for plane in planes}) > 1:
        raise VolumeError(
            f"{where} holds images of different FrameOfReferenceUID, whose positions cannot be "
            "compared: give the images of one scan"
        )
    along = np.array([plane.position @ first.normal for plane in planes])
    order = np.argsort(along, kind="stable")
    ordered = [planes[i] for i in order]
    _check_even(ordered, along[order], where)
    return ordered


def affine(ordered: Sequence[Plane]) -> NDArray[np.float64]:
    """(4, 4) float64: voxel (column, row, slice) to mm in RAS+, of what :func:`in_order` gives."""
    first, last = ordered[0], ordered[-1]
    lps = np.column_stack(
        [
            first.across * first.across_mm,
            first.down * first.down_mm,
            (last.position - first.position) / (len(ordered) - 1),
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = _LPS_TO_RAS @ lps
    matrix[:3, 3] = _LPS_TO_RAS @ first.position
    return matrix


def _parallel(plane: Plane, other: Plane) -> bool:
    return bool(
        np.allclose(plane.across, other.across, atol=_COSINES)
        and np.allclose(plane.down, other.down, atol=_COSINES)
    )


def _check_even(ordered: Sequence[Plane], along: NDArray[np.float64], where: Path) -> None:
    """Refuse planes at one position, gaps, and stacks that lean; ``along``: (n,) mm, sorted."""
    steps = np.diff(along)
    same = np.flatnonzero(steps < _SAME_MM)
    if len(same):
        k = int(same[0])
        raise VolumeError(
            f"{where} holds several images at one position, {along[k]:.1f} mm along the slice "
            f"normal ({ordered[k].difference_to(ordered[k + 1])}): give one image a position"
        )
    usual = float(np.median(steps))
    allowed = max(_UNEVEN * usual, min(_ROUNDED * usual, _ROUNDED_MM))
    uneven = np.flatnonzero(abs(steps - usual) > allowed)
    if len(uneven):
        k = int(uneven[0])
        raise VolumeError(
            f"{where} has slices {steps[k]:.2f} mm apart at {along[k]:.1f} mm along the slice "
            f"normal, elsewhere {usual:.2f} mm: slices are missing, or uneven; export all of them"
        )
    places = np.array([plane.position for plane in ordered])
    even = np.linspace(along[0], along[-1], len(along))
    worst = int(np.argmax(abs(along - even)))
    if abs(along[worst] - even[worst]) > allowed:
        raise VolumeError(
            f"{where} has slices whose distance changes slowly, most at {along[worst]:.1f} mm "
            "along the slice normal: resample them evenly"
        )
    normal = ordered[0].normal
    aside = places - places[0] - np.outer(along - along[0], normal)
    lean_mm = float(np.linalg.norm(aside, axis=1).max())
    if lean_mm > _LEAN_PIXELS * min(ordered[0].across_mm, ordered[0].down_mm):
        raise VolumeError(
            f"{where} has slices that are shifted against each other within their planes, by up "
            f"to {lean_mm:.1f} mm: resample them to a straight stack"
        )
