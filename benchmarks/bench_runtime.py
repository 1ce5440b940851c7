"""Each part of the program and a counterpart: ``python -m pytest benchmarks/bench_runtime.py``

The counterpart is PyTorch, most often the loop of the reference implementation with the same
weights. A ratio more than 20 % smaller than that in ``results/ratios.json`` fails; ``--record``
writes new ones.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from common import CHECKPOINT, EXAMPLE
from methods import Preset, ReferenceLoop
from ratios import Compare

from anofpdm.calibrate.sweep import sweeps
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.errors import DeviceError, MissingExtraError
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.dataset import SliceRecord, SliceSet, open_sliceset, writing
from anofpdm.train.unet import HEALTHY, NULL

SLOTS = 4
X0 = phantom_slices(SLOTS, 1, 128)


@pytest.fixture(scope="module")
def reference() -> ReferenceLoop:
    torch.set_num_threads(usable_cores())
    return ReferenceLoop(Segmenter.load(device="cpu").bundle, SLOTS)


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with Segmenter.load(device="cpu", options=Options(preset="fast")) as loaded:
        settle(loaded)
        yield loaded


def settle(segmenter: Segmenter) -> None:
    """Call the network until it has chosen the faster way to share a batch."""
    for batch in (SLOTS, 1):
        for _ in range(9):
            segmenter.backend.denoiser(X0[:batch], np.full(batch, 100))


@pytest.mark.parametrize("preset", ["fast", "fast-bf16"])
def test_network(compare: Compare, preset: str) -> None:
    """Both labels of four slices; PyTorch: one label after the other."""
    try:
        loaded = Segmenter.load(device="cpu", options=Options(preset=preset))
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))
    with loaded as segmenter:
        unet = load_checkpoint(CHECKPOINT).network().eval()
        x_t, t = X0, np.full(SLOTS, 100)

        @torch.no_grad()
        def eager() -> None:
            for label in (HEALTHY, NULL):
                labels = torch.full((SLOTS,), label)
                unet(torch.from_numpy(x_t), torch.from_numpy(t - 1), labels)

        settle(segmenter)
        compare(lambda: segmenter.backend.denoiser(x_t, t), eager, rounds=15)


def test_forward_step(compare: Compare, segmenter: Segmenter, reference: ReferenceLoop) -> None:
    """A timestep of four slices; the counterpart: the first one, of three evaluations."""
    ours = Preset("fast", segmenter.bundle, segmenter.backend, Options(preset="fast"))
    compare(lambda: ours.steps(X0, 1), lambda: reference.steps(X0, 1), rounds=15)


def test_bookkeeping(compare: Compare, segmenter: Segmenter, reference: ReferenceLoop) -> None:
    """Thirteen timesteps with a network that costs nothing; the counterpart: a timestep with the
    network. NumPy's share of a step is one thirteenth of the inverse ratio."""
    free = Segmenter(segmenter.bundle, NumpyBackend(lambda x_t, t: (x_t, 0.9 * x_t), SLOTS))
    slices = [Slice(i, x0) for i, x0 in enumerate(X0)]
    compare(lambda: list(free.segment_slices(slices)), lambda: reference.steps(X0, 1), rounds=9)


def test_volume(compare: Compare, segmenter: Segmenter, reference: ReferenceLoop) -> None:
    """Eight levels of a volume, image to mask; the counterpart: ten timesteps of eight slices."""
    image, eight = nib.load(EXAMPLE).slicer[:, :, 18:26], np.repeat(X0, 2, axis=0)
    compare(lambda: segmenter.segment(image), lambda: reference.steps(eight, 10), rounds=3)


def test_calibration_sweep(
    compare: Compare, segmenter: Segmenter, reference: ReferenceLoop, tmp_path: Path
) -> None:
    """Six timesteps of four slices for six w at once; the counterpart: for one w."""
    slices, w = _prepared(tmp_path / "slices", segmenter), (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    process = replace(segmenter.plan.process, L=6, stride=1, spacing="even")
    denoiser = segmenter.backend.denoiser
    compare(
        lambda: sweeps(slices, denoiser, process, (6,), w, (0,), slots=SLOTS),
        lambda: reference.steps(X0, 6),
    )


def test_start_up(compare: Compare) -> None:
    """A process that loads the model; the counterpart: a process that loads it in PyTorch."""
    ours = "from anofpdm import Segmenter; Segmenter.load(device='cpu')"
    eager = (
        "from pathlib import Path; from anofpdm.train.checkpoint import load_checkpoint; "
        f"load_checkpoint(Path({str(CHECKPOINT)!r})).network()"
    )
    commands = [[sys.executable, "-c", code] for code in (ours, eager)]
    compare(*(partial(subprocess.run, command, check=True) for command in commands), rounds=5)


def _prepared(folder: Path, segmenter: Segmenter) -> SliceSet:
    manifest = segmenter.bundle.manifest
    with writing(folder, manifest.modalities, manifest.grid, {}) as writer:
        for i, x0 in enumerate(X0):
            writer.add(SliceRecord(f"P{i}", 0, "val", bool(i % 2), True), x0, x0[0] > 0.5)
    return open_sliceset(folder)
