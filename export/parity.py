"""Does a network do what the one it was made from does, where it matters? Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.denoiser import Denoiser
from anofpdm.runtime.errors import ParityError
from anofpdm.runtime.forward import Process, Slice, run
from anofpdm.runtime.postprocess import cut
from anofpdm.runtime.schedule import Schedule
from anofpdm.runtime.select import AnomalyDigest, threshold

from .phantom import phantom_slices

Float32 = NDArray[np.float32]
_SLICES, _W, _L, _STRIDE, _A, _B = 4, 2.0, 301, 60, 0.90, 0.98
_TINY = 1e-12


@dataclass(frozen=True)
class Parity:
    """How far two networks are apart on fixed slices; the worst case of each.

    ``eps``: largest absolute difference, relative to the largest value; ``M_t`` and ``H``: largest
    difference relative to the largest value; ``t_e``: share of slices whose t_e is the same within
    one visited step; ``dice``: smallest Dice between masks.
    """

    eps: float
    M_t: float
    H: float
    t_e: float
    dice: float

    def __str__(self) -> str:
        return (
            f"eps {self.eps:.1e}, M_t {self.M_t:.1e}, H {self.H:.1e}, t_e equal {self.t_e:.0%}, "
            f"mask Dice {self.dice:.4f}"
        )

    def check(
        self,
        tolerance: Parity,
        what: str = "the exported network",
        otherwise: str = "nothing was written",
    ) -> None:
        """Raise ParityError, naming the figure, if any exceeds its tolerance.

        ``what`` was compared, ``otherwise`` ends the message.
        """
        for name, value in asdict(self).items():
            limit = getattr(tolerance, name)
            fails = value < limit if name in ("t_e", "dice") else value > limit
            if fails or not np.isfinite(value):
                raise ParityError(
                    f"{what} differs from PyTorch: {name} {value:.3g}, tolerance "
                    f"{limit:.3g}; {otherwise}"
                )


FP32_TOLERANCE = Parity(eps=1e-4, M_t=1e-3, H=1e-3, t_e=1.0, dice=0.99)
FP16_TOLERANCE = Parity(eps=2e-2, M_t=2e-2, H=2e-2, t_e=0.98, dice=0.98)


def compare(
    reference: Denoiser, other: Denoiser, channels: int, size: int, schedule: Schedule
) -> Parity:
    """Compare two denoisers on noise predictions and on a short forward process.

    Batches of several sizes are used, so a batch that was fixed by mistake shows.
    """
    x0 = phantom_slices(_SLICES, channels, size)
    eps = 0.0
    for batch, first in ((1, 1), (_SLICES, 250), (3, schedule.T - 400)):
        t = np.minimum(first + 100 * np.arange(batch), schedule.T)
        for want, got in zip(reference(x0[:batch], t), other(x0[:batch], t), strict=True):
            eps = max(eps, float(np.abs(got - want).max() / max(np.abs(want).max(), _TINY)))
    process = Process(schedule, min(_L, schedule.T), _STRIDE)
    digests = [_digests(process, denoiser, x0) for denoiser in (reference, other)]
    M_max = np.max([np.array(d.M).max(axis=0) for d in digests[0]], axis=0).clip(_TINY)
    worst = {"M_t": 0.0, "H": 0.0, "t_e": 0.0, "dice": 1.0}
    for want, got in zip(*digests, strict=True):
        worst["M_t"] = max(worst["M_t"], _relative(np.array(want.M), np.array(got.M)))
        worst["H"] = max(worst["H"], _relative(want.H, got.H))
        worst["t_e"] += bool(np.all(np.abs(want.t_e - got.t_e) <= _STRIDE)) / _SLICES
        one, two = (_mask(d, M_max) for d in (want, got))
        total = one.sum() + two.sum()
        worst["dice"] = min(worst["dice"], float(2 * (one & two).sum() / total) if total else 1.0)
    return Parity(eps=eps, **worst)


def _digests(process: Process, denoiser: Denoiser, x0: Float32) -> list[AnomalyDigest]:
    def new() -> AnomalyDigest:
        return AnomalyDigest(_W, tuple(range(x0.shape[1])))

    stream = run(process, denoiser, (Slice(i, x) for i, x in enumerate(x0)), new, slots=3)
    return [digest for _, digest in sorted(stream, key=lambda pair: pair[0].key)]


def _mask(digest: AnomalyDigest, M_max: NDArray[np.float64]) -> NDArray[np.bool_]:
    Q = threshold(digest.H, np.array(digest.M).max(axis=0), M_max, _A, _B).Q
    return cut(digest.H.mean(axis=0), Q)


def _relative(want: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), _TINY))
