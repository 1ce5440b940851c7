"""Everything that must be the same for a run to be resumed, or repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anofpdm.runtime.volume.grid import Grid

from .config import TrainConfig, UNetConfig

_NO_OPTION = {"in_channels", "out_channels", "first_silu", "grad_clip", "autocast"}


@dataclass(frozen=True)
class RunConfig:
    """``modalities`` and ``grid`` of the slices, the network and the training."""

    modalities: tuple[str, ...]
    grid: Grid
    unet: UNetConfig
    train: TrainConfig

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> RunConfig:
        """Build one of what :meth:`as_json` gave; what older versions did not know has its default.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it holds something else.
        """
        unet: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["unet"].items()
        }
        return cls(
            tuple(content["modalities"]),
            Grid(**content["grid"]),
            UNetConfig(**unet),
            TrainConfig(**content["train"]),
        )

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries."""
        return asdict(self)

    def differences(self, other: RunConfig) -> list[str]:
        """What differs, as options with this one's value and, in brackets, the other's."""
        mine, others = self._options(), other._options()
        return [
            f"{_option(name, value)} (not {_value(others[name])})"
            for name, value in mine.items()
            if value != others[name]
        ]

    def _options(self) -> dict[str, object]:
        grid = {f"grid {name}": value for name, value in asdict(self.grid).items()}
        grid["image_size"], grid["pixel_mm"] = grid.pop("grid size"), grid.pop("grid pixel_mm")
        fields = {**asdict(self.unet), **asdict(self.train), **grid}
        # What follows from the modalities is told by them.
        return {"modalities": self.modalities, **fields, "in_channels": None}


def _option(name: str, value: object) -> str:
    if name in _NO_OPTION or name.startswith("grid "):
        return f"{name} {_value(value)}"
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {_value(value)}"


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
