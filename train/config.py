"""What a training run is made of, its presets, and what has to agree to resume it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.volume.grid import Grid

GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network. The defaults are the reference U-Net of the paper (103 M parameters).

    ``attention_resolutions``: pixels a side of the feature maps that attend; ``prediction``: what
    the layers predict, ``eps``, ``v`` or ``x0``. ``first_silu``: whether the first normalisation of
    a residual block, and the one before the last convolution, are followed by SiLU. Papers say so;
    the reference implementation has no activation there, and its checkpoints need it to be off.
    ``label_in``: where the label enters, ``attention`` (the paper's section 3.2) or ``both``,
    attention and time embedding (the reference implementation).
    """

    in_channels: int
    image_size: int = 128
    base_width: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    dropout: float = 0.1
    patch: int = 1
    prediction: str = "eps"
    first_silu: bool = False
    out_channels: int | None = None
    label_in: str = "both"

    def __post_init__(self) -> None:
        if self.prediction not in ("eps", "v", "x0"):
            raise ValueError(f"prediction must be 'eps', 'v' or 'x0', not {self.prediction!r}")
        if self.label_in not in ("both", "attention"):
            raise ValueError(f"label_in must be 'both' or 'attention', not {self.label_in!r}")
        counts = (self.in_channels, self.image_size, self.base_width, *self.channel_mult,
                  self.num_res_blocks, self.num_heads, self.patch)  # fmt: skip
        if min(counts) < 1 or not 0 <= self.dropout < 1:
            raise ValueError("counts and widths must be at least 1, and dropout in 0..1")
        if self.base_width % GROUPS:
            raise ValueError(f"base_width must be a multiple of {GROUPS}, not {self.base_width}")
        if any(self.base_width * mult % self.num_heads for mult in self.channel_mult):
            raise ValueError(f"num_heads must divide all widths, not {self.num_heads}")
        smallest = self.patch * 2 ** (len(self.channel_mult) - 1)
        if self.image_size % smallest:
            raise ValueError(f"image_size must be a multiple of {smallest}, not {self.image_size}")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, but for the data and the network's shape.

    ``batch``: slices an iteration, over all processes; ``warmup``: iterations of linear warm-up;
    ``schedule``: ``cosine`` (to zero at ``iterations``) or ``constant``; ``label_dropout``: share
    of samples trained with the null label; ``contrast``: weight of telling labels apart by their
    errors, see :class:`anofpdm.train.objective.DenoisingLoss`; ``unhealthy_share``: share of samples
    drawn from the unhealthy slices, negative for as they come; ``focus_share`` of the timesteps is
    drawn from 1..``focus_t``, the rest from all; ``strip``: share of samples shown without their
    skull; ``affine``: share of samples rotated, scaled and shifted; ``gain``: largest relative
    change of contrast; ``bias``: largest logarithm of a smooth multiplicative field, as coils
    leave; ``flip``: whether left and right are swapped at random; ``loss_weight``: of
    a timestep, see :mod:`anofpdm.train.objective`.
    """

    iterations: int = 200_000
    batch: int = 32
    lr: float = 1e-4
    warmup: int = 500
    schedule: str = "constant"
    ema: float = 0.9999
    label_dropout: float = 0.1
    contrast: float = 0.0
    unhealthy_share: float = -1.0
    focus_t: int = 1000
    focus_share: float = 0.0
    grad_clip: float = 1.0
    strip: float = 0.0
    affine: float = 0.0
    gain: float = 0.0
    bias: float = 0.0
    flip: bool = False
    autocast: bool = True
    seed: int = 0
    loss_weight: str = "uniform"

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule must be 'cosine' or 'constant', not {self.schedule!r}")
        if self.loss_weight not in ("uniform", "min-snr"):
            raise ValueError(
                f"loss_weight must be 'uniform' or 'min-snr', not {self.loss_weight!r}"
            )
        if self.batch < 1 or self.iterations < 1:
            raise ValueError("batch and iterations must be at least 1")
        for name in ("label_dropout", "focus_share", "strip", "affine", "gain", "bias"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")
        if not 0 <= self.ema < 1 or self.lr < 0 or self.contrast < 0 or self.unhealthy_share > 1:
            raise ValueError("ema must be in 0..1, lr and contrast from 0, unhealthy_share up to 1")
        if not 1 <= self.focus_t <= Schedule.T:
            raise ValueError(f"focus_t must be in 1..{Schedule.T}, not {self.focus_t}")


# What the paper trains, and what a CPU can.
PRESETS: Mapping[str, tuple[Mapping[str, Any], TrainConfig]] = {
    "reference": ({}, TrainConfig()),
    "light": (
        {
            "base_width": 64,
            "channel_mult": (1, 2, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (8,),
            "dropout": 0.0,
            "patch": 4,
            "prediction": "v",
            "first_silu": True,
        },
        TrainConfig(
            iterations=7_000,
            lr=5e-4,
            warmup=200,
            schedule="cosine",
            ema=0.9995,
            unhealthy_share=0.5,
            focus_t=600,
            focus_share=0.75,
            strip=0.3,
            affine=0.5,
            gain=0.2,
            flip=True,
        ),
    ),
}


def unet_config(preset: str, in_channels: int, image_size: int, **changes: Any) -> UNetConfig:
    """The network of a preset, with whatever is not None in ``changes`` changed."""
    options = dict(PRESETS[preset][0])
    options.update({name: value for name, value in changes.items() if value is not None})
    return UNetConfig(in_channels=in_channels, image_size=image_size, **options)


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
