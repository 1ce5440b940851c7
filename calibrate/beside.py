"""Averages over slices that lie near each other, as the runtime makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.refine.through_plane import reach, weights

Float64 = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Beside:
    """Where N slices lie; see :mod:`anofpdm.runtime.refine.through_plane`.

    ``volumes``: (N,) whose they are; ``levels``: (N,); ``spacing_mm``: (N,), 0 where it is not
    known; ``width_mm``: of the average.
    """

    volumes: NDArray[np.int64]
    levels: NDArray[np.int64]
    spacing_mm: Float64
    width_mm: float

    @classmethod
    def of(cls, slices: Iterable[Slice], width_mm: float) -> Beside:
        """Where these lie."""
        places = [(one.volume, one.place.level, one.place.spacing_mm) for one in slices]
        volumes, levels, spacing_mm = (np.array(column) for column in zip(*places, strict=True))
        return cls(volumes, levels, spacing_mm.astype(np.float64), width_mm)

    def take(self, keep: Flags) -> Beside:
        """Of these slices alone."""
        return Beside(self.volumes[keep], self.levels[keep], self.spacing_mm[keep], self.width_mm)

    def average(self, values: Float64) -> Float64:
        """(N,) -> (N,): of each slice and its neighbours."""
        found = np.array(values, np.float64)
        for number in np.unique(self.volumes):
            own = np.flatnonzero(self.volumes == number)
            for i in own:
                apart = np.abs(self.levels[own] - self.levels[i])
                far = reach(self.width_mm, float(self.spacing_mm[i]))
                near = own[apart <= far]
                if len(near) > 1:
                    mm = np.abs(self.levels[near] - self.levels[i]) * self.spacing_mm[i]
                    found[i] = np.average(values[near], weights=weights(mm, self.width_mm))
        return found
