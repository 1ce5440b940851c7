"""What :mod:`ablation` compares: a base recipe, and the same with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anofpdm.train.config import PRESETS, TrainConfig, UNetConfig, unet_config

_BASE_WIDTH, _LONGEST_WARMUP, _CONTRAST = 32, 200, 0.005
_FURTHER: Mapping[str, Any] = {"batch": 24, "lr": 3e-4, "warmup": 20, "ema": 0.98}


@dataclass(frozen=True)
class Variant:
    """``network`` and ``training``: what is changed of the base.

    ``slices``: which prepared slices: ``flair`` of all patients, ``t1``: those with FLAIR, T1 and
    T1-post, ``t1-flair``: the FLAIR of these patients.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    slices: str = "flair"

    def configs(self, channels: int, size: int, iterations: int) -> tuple[UNetConfig, TrainConfig]:
        """A network half as wide as the preset ``light``, and its training."""
        network = {"base_width": _BASE_WIDTH, **self.network}
        training = {"warmup": min(_LONGEST_WARMUP, iterations // 10), **self.training}
        light = replace(PRESETS["light"][1], iterations=iterations, contrast=_CONTRAST)
        return unet_config("light", channels, size, **network), replace(light, **training)

    def further(self, unet: UNetConfig, iterations: int) -> tuple[UNetConfig, TrainConfig] | None:
        """A network that is trained further; None where the variant needs another one."""
        if self.network or self.slices != "flair":
            return None
        base = {"iterations": iterations, "contrast": _CONTRAST, **_FURTHER}
        return unet, replace(PRESETS["light"][1], **{**base, **self.training})


# The EMA's decay is at most (1 + step) / (10 + step): 0.99 is reached after 890 iterations, 0.999
# after 8,990, so shorter runs are told apart by smaller ones.
VARIANTS: Mapping[str, Variant] = {
    "base": Variant(),
    "no contrast": Variant(training={"contrast": 0.0}),
    "contrast 0.02": Variant(training={"contrast": 0.02}),
    "another seed": Variant(training={"seed": 1}),
    "a third seed": Variant(training={"seed": 2}),
    "half as wide below": Variant({"channel_mult": (1, 1, 1)}),
    "twice as wide": Variant({"base_width": 2 * _BASE_WIDTH}),
    "eps-prediction": Variant({"prediction": "eps"}),
    "x0-prediction": Variant({"prediction": "x0"}),
    "label in attention only": Variant({"label_in": "attention"}),
    "label dropout 0.2": Variant(training={"label_dropout": 0.2}),
    "label dropout 0.3": Variant(training={"label_dropout": 0.3}),
    "no focus on low t": Variant(training={"focus_share": 0.0}),
    "min-SNR weights": Variant(training={"loss_weight": "min-snr"}),
    "classes as they come": Variant(training={"unhealthy_share": -1.0}),
    "no flips": Variant(training={"flip": False}),
    "no affine": Variant(training={"affine": 0.0}),
    "no gain": Variant(training={"gain": 0.0}),
    "gain 0.4": Variant(training={"gain": 0.4}),
    "bias field 0.3": Variant(training={"bias": 0.3}),
    "heads never stripped": Variant(training={"strip": 0.0}),
    "FLAIR of the T1 patients": Variant(slices="t1-flair"),
    "T1 and T1-post besides": Variant(slices="t1"),
    "EMA 0.9": Variant(training={"ema": 0.9}),
    "EMA 0.99": Variant(training={"ema": 0.99}),
}
