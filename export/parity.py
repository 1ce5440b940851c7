"""Parity of an exported network with its original, in the whole loop. Needs no torch."""

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
    """The differences between two networks on fixed slices."""

    eps: float  # largest absolute difference of the noise, relative to its largest value
    M_t: float  # the same for M_t, of the worst slice
    H: float  # the same for the anomaly map, of the worst slice
    t_e: float  # share of slices with the same t_e, within one visited step
    dice: float  # between all masks as one; in one slice a smallest component may come or go

    def __str__(self) -> str:
        return (
            f"eps {self.eps:.1e}, M_t {self.M_t:.1e}, H {self.H:.1e}, t_e equal {self.t_e:.0%}, "
            f"mask Dice {self.dice:.4f}"
        )

    def beyond(self, tolerance: "Parity") -> list[str]:
        """The differences beyond their tolerances, as text."""
        lines = []
        for name, value in asdict(self).items():
            limit = getattr(tolerance, name)
            fails = value < limit if name in ("t_e", "dice") else value > limit
            if fails or not np.isfinite(value):
                lines.append(f"{name} {value:.3g}, tolerance {limit:.3g}")
        return lines

    def check(
        self,
        tolerance: "Parity",
        what: str = "the exported network",
        reference: str = "PyTorch",
        otherwise: str = "nothing was written",
    ) -> None:
        """Raise ParityError if a difference is beyond its tolerance.

        Parameters
        ----------
        what, reference : names of the compared networks for the message
        otherwise : end of the message
        """
        for difference in self.beyond(tolerance):
            raise ParityError(f"{what} differs from {reference}: {difference}; {otherwise}")


FP32_TOLERANCE = Parity(eps=1e-4, M_t=1e-3, H=1e-3, t_e=1.0, dice=0.99)
FP16_TOLERANCE = Parity(eps=2e-2, M_t=2e-2, H=2e-2, t_e=0.98, dice=0.98)


@dataclass(frozen=True)
class Trial:
    """The slices and the process of a comparison."""

    x0: Float32  # (n, C, size, size) slices in [-1, 1]
    recipe: Recipe  # the process
    a: float = _A  # smallest quantile of Algorithm 1
    b: float = _B  # largest quantile of Algorithm 1

    @classmethod
    def short(cls, channels: int, size: int, schedule: Schedule) -> "Trial":
        """Four phantom slices at six timesteps."""
        process = Process(schedule, min(_L, schedule.T), _STRIDE)
        return cls(phantom_slices(_SLICES, channels, size),
                   Recipe(process, _W, tuple(range(channels))))  # fmt: skip

    @classmethod
    def of(cls, bundle: Bundle) -> "Trial":
        """Sixteen phantom slices; the process of the bundle's default calibration if it has at most
        20 steps, else six timesteps."""
        manifest = bundle.manifest
        trial = cls.short(len(manifest.modalities), manifest.grid.size, manifest.schedule)
        recipe = replace(trial.recipe, scored=manifest.scored_channels)
        if bundle.default:
            plan = resolve(bundle, Options())
            if len(plan.process.timesteps) <= _STEPS:
                recipe = Recipe(plan.process, plan.calibration.w, recipe.scored, plan.rule)
        return cls(phantom_slices(_MANY, *trial.x0.shape[1:3]), recipe)


@dataclass(frozen=True)
class Observed:
    """The results of a network on a trial."""

    eps: tuple[Float32, ...]  # noise predictions, (B, C, size, size) each
    curves: tuple[SliceCurves, ...]  # (n,) of every slice


def observe(backend: Backend, trial: Trial) -> Observed:
    """Run a trial. Predictions are in batches of several sizes, so that a fixed batch fails."""
    x0, T = trial.x0, trial.recipe.process.schedule.T
    eps: list[Float32] = []
    for batch, first in ((1, 1), (_SLICES, 250), (3, T - 400)):
        eps += backend.denoiser(x0[:batch], np.minimum(first + 100 * np.arange(batch), T))
    stream = backend.run(trial.recipe, (Slice(i, x) for i, x in enumerate(x0)))
    curves = sorted(stream, key=lambda pair: pair[0].key)
    return Observed(tuple(eps), tuple(of_slice for _, of_slice in curves))


def compare(reference: Observed | Backend, other: Backend, trial: Trial) -> Parity:
    """The parity of a backend with another one, or with results of that other one."""
    want_all = reference if isinstance(reference, Observed) else observe(reference, trial)
    got_all = observe(other, trial)
    eps = max(_relative(want, got) for want, got in zip(want_all.eps, got_all.eps, strict=True))
    M_max = np.max([curves.M.max(axis=0) for curves in want_all.curves], axis=0).clip(_TINY)
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
    """Dice of many pairs of masks as one pair; 1 where all are empty."""
    common = sum(int((a & b).sum()) for a, b in masks)
    total = sum(int(a.sum() + b.sum()) for a, b in masks)
    return 2 * common / total if total else 1.0


def _mask(curves: SliceCurves, M_max: NDArray[np.float64], trial: Trial) -> NDArray[np.bool_]:
    Q = threshold(curves.H, curves.M.max(axis=0), M_max, trial.a, trial.b).Q
    return cut(median(curves.H.mean(axis=0)), Q)


def _relative(want: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), _TINY))
