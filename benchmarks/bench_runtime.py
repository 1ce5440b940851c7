"""Each part beside its counterpart, in turn: ``python -m pytest benchmarks/bench_runtime.py``

The counterpart is PyTorch, most often the loop of the reference implementation (``counterpart.py``)
with the same weights. A ratio that is more than 20 % smaller than the one recorded in
``results/ratios.json`` fails; ``--record`` keeps new ones, ``--benchmark-json FILE`` everything.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from contenders import CHECKPOINT, Ours, Theirs
from networks import LIGHT, randomised
from ratios import Against

from anofpdm.calibrate.sweep import sweeps
from anofpdm.export.both_labels import BothLabels
from anofpdm.export.onnx_file import export_onnx
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
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "simulated_flair.nii.gz"
X0 = phantom_slices(SLOTS, 1, 128)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    torch.set_num_threads(usable_cores())
    return Theirs(Segmenter.load(device="cpu").bundle, SLOTS)


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with Segmenter.load(device="cpu", options=Options(preset="fast")) as one:
        settle(one)
        yield one


def settle(one: Segmenter) -> None:
    """Ask for batches until the faster way to share them is known."""
    for batch in (SLOTS, 1):
        for _ in range(9):
            one.backend.denoiser(X0[:batch], np.full(batch, 100))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network(against: Against, precision: str) -> None:
    """Both labels of four slices; PyTorch: one label after the other."""
    try:
        loaded = Segmenter.load(device="cpu", options=Options(precision=precision))
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))
    with loaded as one:
        unet = load_checkpoint(CHECKPOINT).network().eval()
        x_t, t = X0, np.full(SLOTS, 100)
        both = torch.from_numpy(x_t), torch.from_numpy(t - 1)

        @torch.no_grad()
        def eager() -> None:
            for label in (HEALTHY, NULL):
                unet(*both, torch.full((SLOTS,), label))

        settle(one)
        against(lambda: one.backend.denoiser(x_t, t), eager, rounds=15)


def test_forward_step(against: Against, segmenter: Segmenter, theirs: Theirs) -> None:
    """A timestep of four slices; the counterpart: three evaluations, for it is the first one."""
    ours = Ours("fast", segmenter.bundle, segmenter.backend, Options(preset="fast"))
    against(lambda: ours.steps(X0, 1), lambda: theirs.steps(X0, 1), rounds=15)


def test_bookkeeping(against: Against, segmenter: Segmenter, theirs: Theirs) -> None:
    """Thirteen timesteps with a network that costs nothing; the counterpart: one with the network.
    NumPy's share of a step is one thirteenth of the inverse ratio."""
    free = Segmenter(segmenter.bundle, NumpyBackend(lambda x_t, t: (x_t, 0.9 * x_t), SLOTS))
    against(lambda: list(free.segment_slices(_slices(X0))), lambda: theirs.steps(X0, 1), rounds=9)


def test_slice(against: Against, segmenter: Segmenter, theirs: Theirs) -> None:
    """One slice with the preset fast, from end to end; the counterpart: 20 of its 600 timesteps."""
    against(lambda: list(segmenter.segment_slices(_slices(X0[:1]))), lambda: theirs.steps(X0[:1], 20))


def test_volume(against: Against, segmenter: Segmenter, theirs: Theirs) -> None:
    """Eight levels of a volume, image to mask; the counterpart: ten timesteps of eight slices."""
    image, eight = nib.load(EXAMPLE).slicer[:, :, 36:44], np.repeat(X0, 2, axis=0)
    against(lambda: segmenter.segment(image), lambda: theirs.steps(eight, 10), rounds=3)


def test_calibration_sweep(
    against: Against, segmenter: Segmenter, theirs: Theirs, tmp_path: Path
) -> None:
    """Six timesteps of four slices for six w at once; the counterpart: for one."""
    slices, w = _prepared(tmp_path / "slices", segmenter), (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    process = replace(segmenter.plan.process, L=6, stride=1, spacing="even")
    denoiser = segmenter.backend.denoiser

    def ours() -> None:
        sweeps(slices, denoiser, process, (6,), w, (0,), slots=SLOTS)

    against(ours, lambda: theirs.steps(X0, 6))


def test_start_up(against: Against) -> None:
    """A process that loads the model and segments nothing; the counterpart: one that loads it in
    PyTorch."""
    ours = "from anofpdm import Segmenter; Segmenter.load(device='cpu')"
    eager = (
        "from pathlib import Path; from anofpdm.train.checkpoint import load_checkpoint; "
        f"load_checkpoint(Path({str(CHECKPOINT)!r})).network()"
    )
    against(lambda: _process(ours), lambda: _process(eager), rounds=5)


def test_export(against: Against, tmp_path: Path) -> None:
    """The light network to ONNX, its labels folded; the counterpart: as it was trained."""
    unet = randomised(LIGHT)

    def to_onnx(folded: bool) -> None:
        network = BothLabels(copy.deepcopy(unet), "fp32", folded=folded)
        export_onnx(network, tmp_path / "unet.onnx")

    against(lambda: to_onnx(True), lambda: to_onnx(False), rounds=3)


def _prepared(folder: Path, segmenter: Segmenter) -> SliceSet:
    manifest = segmenter.bundle.manifest
    with writing(folder, manifest.modalities, manifest.grid, {}) as writer:
        for i, x0 in enumerate(X0):
            writer.add(SliceRecord(f"P{i}", 0, "val", bool(i % 2), True), x0, x0[0] > 0.5)
    return open_sliceset(folder)


def _slices(x0: np.ndarray) -> Iterator[Slice]:
    return (Slice(i, x) for i, x in enumerate(x0))


def _process(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
