"""Which slices count together: those of one scan that lie near each other."""

from collections.abc import Iterable

from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.refine.through_plane import NeighbourWindow, Window


def neighbour_windows(slices: Iterable[Slice | None], width_mm: float) -> list[Window[int]]:
    """The window of every slice, in their order; slices are named by their place in it."""
    window: NeighbourWindow[int] = NeighbourWindow(width_mm)
    windows: dict[int, Window[int]] = {}
    for place, item in enumerate(window.announced(slices)):
        assert item is not None
        windows |= {near[0][1]: near for _, near in window.add(item, place)}
    windows |= {near[0][1]: near for _, near in window.ready()}
    return [windows[place] for place in range(len(windows))]
