"""The configuration of a training run, and its presets. Needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.volume.grid import Grid

GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network; the defaults are the reference U-Net of the paper, 103 M parameters."""

    in_channels: int  # modalities
    image_size: int = 128  # pixels a side
    base_width: int = 128  # channels that channel_mult multiplies, a multiple of 32
    channel_mult: tuple[int, ...] = (1, 1, 2, 3, 4)  # width of each level
    num_res_blocks: int = 2  # residual blocks a level on the way down, one more on the way up
    attention_resolutions: tuple[int, ...] = (32, 16, 8)  # pixels a side of maps with attention
    num_heads: int = 4  # of the attention
    dropout: float = 0.1  # rate in residual blocks
    patch: int = 1  # patch x patch pixels are folded into channels before the first convolution
    prediction: str = "eps"  # of the layers: eps, v or x0
    first_silu: bool = False  # SiLU where the reference implementation has none, see unet.py
    out_channels: int | None = None  # None for in_channels
    label_in: str = "both"  # attention (section 3.2), or both: with the time embedding (reference)

    def __post_init__(self) -> None:
        if self.prediction not in ("eps", "v", "x0"):
            raise ValueError(f"prediction must be 'eps', 'v' or 'x0', not {self.prediction!r}")
        if self.label_in not in ("both", "attention"):
            raise ValueError(f"label_in must be 'both' or 'attention', not {self.label_in!r}")
        sizes = (self.in_channels, self.image_size, self.base_width, *self.channel_mult,
                  self.num_res_blocks, self.num_heads, self.patch)  # fmt: skip
        if min(sizes) < 1 or not 0 <= self.dropout < 1:
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
    """Everything that determines the weights, except the data and the network's shape."""

    iterations: int = 200_000  # steps of the optimizer
    batch: int = 32  # slices an iteration, over all processes
    lr: float = 1e-4  # learning rate after the warm-up
    warmup: int = 500  # iterations of linear warm-up
    schedule: str = "constant"  # of the learning rate: constant, or cosine to 0 at iterations
    ema: float = 0.9999  # decay of the exponential moving average of the weights
    label_dropout: float = 0.1  # share of samples with the null label
    contrast: float = 0.0  # weight of the contrast between labels, see DenoisingLoss
    unhealthy_share: float = -1.0  # share of unhealthy slices in batches; negative: as in the data
    focus_t: int = 1000  # largest timestep (1-based) of the focused samples
    focus_share: float = 0.0  # share of samples from timesteps 1..focus_t only; the others: 1..T
    grad_clip: float = 1.0  # largest norm of the gradient
    strip: float = 0.0  # share of samples without the skull
    affine: float = 0.0  # share of samples rotated, scaled and shifted
    gain: float = 0.0  # largest relative change of contrast
    bias: float = 0.0  # largest logarithm of a smooth multiplicative field, as coils make it
    flip: bool = False  # whether half of the samples are flipped, left for right
    autocast: bool = True  # whether the network computes in bfloat16
    seed: int = 0  # of initial weights, batches and dropout
    loss_weight: str = "uniform"  # of timesteps: uniform or min-snr, see timestep_weights

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


# "reference" is the paper's training, "light" one that a CPU can run.
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
    """The network of a preset, with the fields in ``changes`` that are not None."""
    options = dict(PRESETS[preset][0])
    options.update({name: value for name, value in changes.items() if value is not None})
    return UNetConfig(in_channels=in_channels, image_size=image_size, **options)


_NO_OPTION = {"in_channels", "out_channels", "first_silu", "grad_clip", "autocast"}


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration of a run, which must be the same to resume it."""

    modalities: tuple[str, ...]  # names of the C channels
    grid: Grid  # of the slices
    unet: UNetConfig  # shape of the network
    train: TrainConfig  # training

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "RunConfig":
        """The inverse of :meth:`as_json`; fields that older versions lack have their defaults.

        Raises
        ------
        KeyError, TypeError, ValueError
            If ``content`` is something else.
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

    def differences(self, other: "RunConfig") -> list[str]:
        """The options that differ, with their value here and, in brackets, in ``other``."""
        values, others = self._options(), other._options()
        return [
            f"{_option(name, value)} (not {_value(others[name])})"
            for name, value in values.items()
            if value != others[name]
        ]

    def _options(self) -> dict[str, object]:
        grid = {f"grid {name}": value for name, value in asdict(self.grid).items()}
        grid["image_size"], grid["pixel_mm"] = grid.pop("grid size"), grid.pop("grid pixel_mm")
        fields = {**asdict(self.unet), **asdict(self.train), **grid}
        # in_channels follows from the modalities.
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
