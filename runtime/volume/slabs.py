"""Large arrays piece by piece, so that no second copy of a volume is held."""

from collections.abc import Iterator, Sequence

import numpy as np

_SLAB_VOXELS = 2**20


def slabs(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The parts of an array that follow each other in Fortran order, each of some planes along its
    third axis; an array with fewer axes is one part."""
    if len(shape) < 3:
        yield tuple(slice(0, n) for n in shape)
        return
    planes = max(1, _SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for further in np.ndindex(*shape[:2:-1]):
        rest = tuple(slice(i, i + 1) for i in reversed(further))
        for first in range(0, shape[2], planes):
            last = min(first + planes, shape[2])
            yield (slice(0, shape[0]), slice(0, shape[1]), slice(first, last), *rest)
