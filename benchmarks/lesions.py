"""How well the lesions of labelled slices are found, whatever network or timesteps find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from paper import as_in_the_paper

from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.labelled import fitting
from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceSet, open_sliceset


def with_lesions(path: Path, bundle: Bundle, split: str, every: int) -> SliceSet:
    """The unhealthy ones among every k-th slice of a split."""
    slices = fitting(open_sliceset(path), bundle).split(split)
    slices = slices.take(range(0, len(slices), every))
    return slices.take(np.flatnonzero(slices.unhealthy).tolist())


def lesions_found(
    bundle: Bundle, denoiser: Denoiser, slices: SliceSet, preset: str | None = None
) -> dict[str, Any]:
    """Dice and AUPRC of unhealthy slices, each segmented whatever the decision, alone.

    Returns
    -------
    what JSON holds of them; ``dice_each``: of each slice, in order
    """
    segmenter = Segmenter(
        as_in_the_paper(bundle), NumpyBackend(denoiser), options=Options(preset=preset)
    )
    found = evaluate(segmenter, slices)
    each = [one.dice for one in found.slices]
    return {"dice": found.unhealthy.dice, "auprc": found.unhealthy.auprc, "dice_each": each}
