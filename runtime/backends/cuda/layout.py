"""How the slots and their loop lie in the memory of the host and of the GPU."""

from dataclasses import dataclass

import numpy as np

from ..base import Recipe

# The last column of a report: a slot's last step; the enumeration in kernels.cu.
IDLE, STEPPED, LEFT, BROKEN = range(4)
# struct Slot in kernels.cu.
SLOT = np.dtype(
    [("key", "u8"), ("visited", "i4"), ("below", "i4"), ("active", "i4"), ("broken", "i4")],
    align=True,
)
_INTEGERS = ("channels", "pixels", "scored", "steps", "ddpm", "clip",
             "last", "gradient", "patience")  # fmt: skip
POINTERS = ("place", "timesteps", "signal", "noise", "norm", "x0", "x_t", "t", "eps_healthy",
            "eps_null", "sum", "H", "best", "slots", "reports")  # fmt: skip
# struct Loop in kernels.cu.
LOOP = np.dtype(
    [(name, "i4") for name in _INTEGERS]
    + [("w", "f4"), ("one_plus_w", "f4"), ("drop", "f8"), ("seed", "u8")]
    + [(name, "u8") for name in POINTERS],
    align=True,
)


@dataclass(frozen=True)
class LoopLayout:
    """Everything that decides the contents of :data:`LOOP`, but for the addresses."""

    recipe: Recipe  # what is computed
    channels: int  # C, of the slices
    size: int  # pixels a side of the slices

    def numbers(self) -> dict[str, float | np.float32]:
        """The fields of :data:`LOOP` that are not pointers."""
        recipe = self.recipe
        process, rule, stop = recipe.process, recipe.rule, recipe.stop
        return {
            "channels": self.channels,
            "pixels": self.size**2,
            "scored": len(recipe.scored),
            "steps": len(process.timesteps),
            "ddpm": process.encoding == "ddpm",
            "clip": process.clip,
            "last": rule.anomaly_map == "last",
            "gradient": rule.sub_map != "residual",
            "patience": stop.patience if stop else 0,
            "w": np.float32(recipe.w),
            "one_plus_w": np.float32(1 + recipe.w),
            "drop": stop.drop if stop else 0.0,
            "seed": recipe.seed,
        }

    def tables(self) -> dict[str, np.ndarray]:
        """What the pointers of :data:`LOOP` that never change point to."""
        recipe = self.recipe
        t = recipe.process.timesteps
        abar = recipe.process.schedule.abar[t - 1]
        place = np.full(self.channels, -1, np.int32)
        place[list(recipe.scored)] = np.arange(len(recipe.scored))
        return {
            "place": place,
            "timesteps": t,
            "signal": np.sqrt(abar).astype(np.float32),
            "noise": np.sqrt(1 - abar).astype(np.float32),
            "norm": np.array([recipe.rule.norm(a, recipe.w) for a in abar], np.float32),
        }
