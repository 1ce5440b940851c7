"""Networks of closed form, bundles, volumes and cohorts that tests share."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from anofpdm.calibrate.choose import Labels
from anofpdm.export.bundle_update import write_calibration, write_manifest
from anofpdm.runtime.backends.cpu.openvino import load_openvino
from anofpdm.runtime.bundle.bundle import NETWORK, Bundle, Manifest, open_bundle
from anofpdm.runtime.bundle.calibration import Calibration
from anofpdm.runtime.errors import MissingExtraError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.util.files import sha256
from anofpdm.runtime.volume.grid import Grid

ROOT = Path(__file__).resolve().parents[1]


def shared(*parts: str) -> Path:
    """A file or folder that cannot be shipped; skips the test where it is absent."""
    folder = os.environ.get("ANOFPDM_SHARED")
    if not folder:
        pytest.skip("ANOFPDM_SHARED does not name the folder with data/ and fixtures/")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def needs_bf16() -> None:
    """Skips the test where nothing computes in bfloat16."""
    try:
        openvino = load_openvino()
    except MissingExtraError as error:
        pytest.skip(str(error))
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")


def labelled(unhealthy, patients: int = 5) -> Labels:
    """Labels of slices that belong to patients in turn."""
    return Labels(unhealthy, np.array([f"P{i % patients}" for i in range(len(unhealthy))]))


def call(command, *arguments, code: int = 0) -> str:
    """What a command prints, which has to end with this exit code."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def toy_network(x_t, t):
    """A nonlinear, shift-mixing stand-in for the U-Net, in the precision it is given."""
    share = (np.asarray(t, x_t.dtype) / 1000)[:, None, None, None]
    rolled = np.roll(x_t, 1, axis=-1) + 0.5 * np.roll(x_t, -2, axis=-2)
    eps_null = (0.6 * x_t + 0.2 * np.sin(rolled)).astype(x_t.dtype)
    bump = np.exp(-((5 * share - 1.5) ** 2))
    eps_healthy = eps_null + (0.1 * bump * np.cos(2 * rolled)).astype(x_t.dtype)
    return eps_healthy.astype(x_t.dtype), eps_null


def fading_network(x_t, t):
    """The toy network with guidance that dies out, so that M_t has a peak before L; later on
    slices that are brighter."""
    eps_healthy, eps_null = toy_network(x_t, t)
    reach = 60 + 200 * (1 + x_t.mean(axis=(1, 2, 3)).clip(-1, 1))
    fade = np.exp(-((np.asarray(t) / reach) ** 2)).astype(x_t.dtype)[:, None, None, None]
    return eps_null + fade * (eps_healthy - eps_null), eps_null


# How far predictions of the default network may differ, relative to the largest, when products are
# summed in another order (another CPU, batch or number of threads): two orders of n terms differ by
# about sqrt(n) 2^-24 of the result, and 43 convolutions of n = 9 * 256 follow each other:
# sqrt(43 * 2304) 2^-24 = 1.9e-5.
SUMMATION = 2e-5

_KERNELS = np.array([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
                     [[1, 1, 1], [1, 1, 1], [1, 1, 1]]], np.float32)  # fmt: skip
_MIX = np.array([1, -1, 2], np.float32)


def integer_network(x_t, t):
    """Two convolutions with a ReLU between them, and the timestep: of small integers, everything is
    an integer below 256, exact in float32 and bfloat16 in any order of summation."""
    count, _, rows, columns = x_t.shape
    padded = np.pad(x_t[:, 0], ((0, 0), (1, 1), (1, 1)))
    eps_null = np.zeros((count, 1, rows, columns), np.float32)
    for weights, mix in zip(_KERNELS, _MIX, strict=True):
        taps = [weights[i, j] * padded[:, i : i + rows, j : j + columns]
                for i in range(3) for j in range(3)]  # fmt: skip
        eps_null[:, 0] += mix * np.maximum(sum(taps), 0)
    return eps_null + (np.asarray(t, np.float32) - 1)[:, None, None, None], eps_null


def write_integer_network(path: Path, size: int = 8) -> Path:
    """:func:`integer_network` as an ONNX file, for slices (1, size, size)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {"kernels": _KERNELS[:, None], "mix": _MIX[None, :, None, None],
               "shape": np.array([-1, 1, 1, 1])}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x_t", "kernels"], ["filtered"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["filtered"], ["positive"]),
        helper.make_node("Conv", ["positive", "mix"], ["eps_null"]),
        helper.make_node("Cast", ["t"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["number", "shape"], ["step"]),
        helper.make_node("Add", ["eps_null", "step"], ["eps_healthy"]),
    ]
    image = ["batch", 1, size, size]
    x_t, healthy, null = (helper.make_tensor_value_info(name, TensorProto.FLOAT, image)
                          for name in ("x_t", "eps_healthy", "eps_null"))  # fmt: skip
    graph = helper.make_graph(
        nodes, "integers", [x_t, helper.make_tensor_value_info("t", TensorProto.INT64, ["batch"])],
        [healthy, null], [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), path)
    return path


def bundle(
    calibration: bool = True,
    channels: int = 1,
    size: int = 32,
    process: tuple = ("ddim", 301, 60, "even"),
    **changes,
) -> Bundle:
    """A bundle in memory, for Segmenters with a network of the test's own.

    ``process``: encoding, L, stride and spacing of its calibration.
    """
    names = tuple("abcdef"[:channels])
    fields = {
        "name": "toy", "modalities": names, "scored": names, "grid": Grid(size, 60 / 8 * 32 / size),
        "schedule": Schedule(), "L": 301, "clip": True, "precision": "fp32",
        "files": {NETWORK: "0" * 64},
    }  # fmt: skip
    manifest = Manifest(**{**fields, **changes})
    empty = Bundle(Path("toy"), manifest)
    if not calibration:
        return empty
    fast = Calibration(
        2.0,
        2.0,
        LogisticDecision(1.0, 0.0, 0.0),
        (0.01,) * len(manifest.scored),
        empty.conditions(*process),
    )
    return replace(empty, calibrations={"fast": fast}, default="fast")


def recalibrated(toy: Bundle, **changes) -> Bundle:
    """The bundle with something changed in its calibration."""
    fast = replace(toy.calibrations["fast"], **changes)
    return replace(toy, calibrations={"fast": fast})


def write_toy_bundle(path: Path, **changes) -> Path:
    """A bundle on disk; its network is not one."""
    path.mkdir()
    (path / NETWORK).write_bytes(b"not a network")
    toy = bundle(files={NETWORK: sha256(path / NETWORK)}, **changes)
    write_manifest(path, toy.manifest)
    write_calibration(open_bundle(path), "fast", toy.calibrations["fast"])
    return path


def head(shape=(24, 28, 10), lesion=True, seed=0):
    """An ellipsoid of tissue in air, optionally with a bright ball: float32."""
    rng = np.random.Generator(np.random.Philox(seed))
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x / 0.75) ** 2 + (y / 0.85) ** 2 + (z / 1.2) ** 2 < 1
    values = np.where(inside, 100 + 5 * rng.standard_normal(shape), 0)
    # Nothing here is symmetric, so that no flip goes unnoticed.
    values += np.where(inside, 15 * x + 10 * y + 8 * z, 0)
    if lesion:
        values += 80 * np.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2 + (z - 0.1) ** 2) / 0.06) * inside
    return values.astype(np.float32)


def save(path: Path, array, affine=None, dtype=None) -> Path:
    """Write a NIfTI file."""
    affine = np.diag([7.5, 7.5, 5.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(array, dtype or array.dtype), affine), path)
    return path


def write_cohort(folder: Path, patients: int = 6, modalities=("flair",)) -> Path:
    """A BraTS-like cohort of small heads; odd patients have a lesion on some slices."""
    for i in range(patients):
        case = folder / f"P{i:02d}"
        case.mkdir(parents=True)
        healthy = head((32, 32, 6), lesion=False, seed=i)
        sick = head((32, 32, 6), lesion=True, seed=i)
        for name in modalities:
            save(case / f"P{i:02d}_{name}.nii.gz", sick if i % 2 else healthy)
        mask = (sick - healthy > 20) & bool(i % 2)
        save(case / f"P{i:02d}_seg.nii.gz", mask.astype(np.uint8))
    return folder
