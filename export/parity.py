"""Does a network do what the one it was made from does, where it matters? Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.backends.base import Backend, Recipe
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.errors import ParityError
from anofpdm.runtime.method.accumulator import SliceCurves
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.method.threshold import threshold
from anofpdm.runtime.refine.masks import cut, median

from .phantom import phantom_slices

Float32 = NDArray[np.float32]
_SLICES, _W, _L, _STRIDE, _A, _B = 4, 2.0, 301, 60, 0.90, 0.98
_MANY, _STEPS = 16, 20
_TINY = 1e-12


@dataclass(frozen=True)
class Parity:
    """How far two networks are apart on fixed slices.

    ``eps``: largest absolute difference, relative to the largest value; ``M_t`` and ``H``: so, too,
    of the worst slice; ``t_e``: share of slices whose t_e is the same within one visited step;
    ``dice``: between the masks of all slices taken together: on a single one with nothing to find a
    component of just the smallest size may come or go.
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

    def beyond(self, tolerance: Parity) -> list[str]:
        """The figures that exceed their tolerances."""
        found = []
        for name, value in asdict(self).items():
            limit = getattr(tolerance, name)
            fails = value < limit if name in ("t_e", "dice") else value > limit
            if fails or not np.isfinite(value):
                found.append(f"{name} {value:.3g}, tolerance {limit:.3g}")
        return found

    def check(
        self,
        tolerance: Parity,
        what: str = "the exported network",
        reference: str = "PyTorch",
        otherwise: str = "nothing was written",
    ) -> None:
        """Raise ParityError, naming the figure, if any exceeds its tolerance.

        ``what`` was compared with ``reference``, ``otherwise`` ends the message.
        """
        for figure in self.beyond(tolerance):
            raise ParityError(f"{what} differs from {reference}: {figure}; {otherwise}")


FP32_TOLERANCE = Parity(eps=1e-4, M_t=1e-3, H=1e-3, t_e=1.0, dice=0.99)
FP16_TOLERANCE = Parity(eps=2e-2, M_t=2e-2, H=2e-2, t_e=0.98, dice=0.98)


@dataclass(frozen=True)
class Trial:
    """What networks are compared on: ``x0``, (n, C, size, size) float32, ``recipe`` and the
    quantiles ``a`` and ``b`` of Algorithm 1."""

    x0: Float32
    recipe: Recipe
    a: float = _A
    b: float = _B

    @classmethod
    def short(cls, channels: int, size: int, schedule: Schedule) -> Trial:
        """Four phantom slices at six timesteps."""
        process = Process(schedule, min(_L, schedule.T), _STRIDE)
        return cls(phantom_slices(_SLICES, channels, size),
                   Recipe(process, _W, tuple(range(channels))))  # fmt: skip

    @classmethod
    def of(cls, bundle: Bundle) -> Trial:
        """Sixteen phantom slices, and what the bundle's default calibration does with a slice where
        it does so in few steps; otherwise six timesteps."""
        manifest = bundle.manifest
        trial = cls.short(len(manifest.modalities), manifest.grid.size, manifest.schedule)
        recipe = replace(trial.recipe, scored=manifest.scored_channels)
        if bundle.default:
            setup = resolve(bundle, Options())
            if len(setup.process.timesteps) <= _STEPS:
                recipe = Recipe(setup.process, setup.calibration.w, recipe.scored, setup.rule)
        return cls(phantom_slices(_MANY, *trial.x0.shape[1:3]), recipe)


@dataclass(frozen=True)
class Observed:
    """What a network says on a trial: ``eps``, noise predictions; ``curves``, a slice each."""

    eps: tuple[Float32, ...]
    curves: tuple[SliceCurves, ...]


def observe(backend: Backend, trial: Trial) -> Observed:
    """Run a trial.

    Batches of several sizes are used, so a batch that was fixed by mistake shows.
    """
    x0, T = trial.x0, trial.recipe.process.schedule.T
    eps: list[Float32] = []
    for batch, first in ((1, 1), (_SLICES, 250), (3, T - 400)):
        eps += backend.denoiser(x0[:batch], np.minimum(first + 100 * np.arange(batch), T))
    stream = backend.run(trial.recipe, (Slice(i, x) for i, x in enumerate(x0)))
    curves = sorted(stream, key=lambda pair: pair[0].key)
    return Observed(tuple(eps), tuple(found for _, found in curves))


def compare(reference: Observed | Backend, other: Backend, trial: Trial) -> Parity:
    """How far a network, and where it runs, is from another, or from what that one has said."""
    want_all = reference if isinstance(reference, Observed) else observe(reference, trial)
    got_all = observe(other, trial)
    eps = max(_relative(want, got) for want, got in zip(want_all.eps, got_all.eps, strict=True))
    M_max = np.max([found.M.max(axis=0) for found in want_all.curves], axis=0).clip(_TINY)
    timesteps = trial.recipe.process.timesteps
    worst = {"M_t": 0.0, "H": 0.0}
    kept, masks = [], []
    for want, got in zip(want_all.curves, got_all.curves, strict=True):
        worst["M_t"] = max(worst["M_t"], _relative(want.M, got.M))
        worst["H"] = max(worst["H"], _relative(want.H, got.H))
        steps = np.searchsorted(timesteps, want.t_e) - np.searchsorted(timesteps, got.t_e)
        kept.append(bool(np.all(np.abs(steps) <= 1)))
        masks.append((_mask(want, M_max, trial), _mask(got, M_max, trial)))
    return Parity(eps=eps, t_e=float(np.mean(kept)), dice=pooled_dice(masks), **worst)


def pooled_dice(masks: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float:
    """Dice of many pairs of masks taken together; 1 where all are empty."""
    common = sum(int((one & two).sum()) for one, two in masks)
    total = sum(int(one.sum() + two.sum()) for one, two in masks)
    return 2 * common / total if total else 1.0


def _mask(found: SliceCurves, M_max: NDArray[np.float64], trial: Trial) -> NDArray[np.bool_]:
    Q = threshold(found.H, found.M.max(axis=0), M_max, trial.a, trial.b).Q
    return cut(median(found.H.mean(axis=0)), Q)


def _relative(want: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), _TINY))
