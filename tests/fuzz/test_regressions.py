"""What once ended badly, by how it did. Found by fuzzing unless a case says otherwise."""

import json

import nibabel as nib
import numpy as np
import onnx
import pytest
from fuzz import targets
from fuzz.worker import attempt
from support import head

from anofpdm.runtime.bundle.bundle import CALIBRATION, MANIFEST, NETWORK
from anofpdm.runtime.errors import AnofpdmError, BundleError


def image(kind=nib.Nifti1Image, shape=(20, 24, 8), **fields):
    made = kind(np.rint(head(shape)).astype(np.int16), np.diag([8.0, 8, 5, 1]))
    for name, value in fields.items():
        made.header[name] = value
    return made.header.binaryblock + bytes(4) + made.dataobj.tobytes("F")


def an_axis_too_short_to_square():
    """The orientation is undefined: ValueError out of the library."""
    affine = {"sform_code": 1, "srow_x": [5e-243, 0, 0, 0], "srow_y": [0, 8, 0, 0],
              "srow_z": [0, 0, 5, 0]}  # fmt: skip
    return {"v.nii": image(nib.Nifti2Image, vox_offset=544, magic=b"n+2\0\r\n\x1a\n", **affine)}


def units_that_no_standard_knows():
    """KeyError out of the library."""
    return {"v.nii": image(vox_offset=352, magic=b"n+1", xyzt_units=240)}


def pixels_of_a_nanometre():
    """Terabytes of resampling weights (found by reading)."""
    affine = {"sform_code": 1, "srow_x": [1e-6, 0, 0, 0], "srow_y": [0, 1e6, 0, 0]}
    return {"v.nii": image(vox_offset=352, magic=b"n+1", **affine)}


def a_volume_of_thirty_metres():
    """The same on the way back, after all the work (found by reading)."""
    return {"v.nii": image(shape=(4000, 20, 3), vox_offset=352, magic=b"n+1")}


VOLUMES = [
    an_axis_too_short_to_square, units_that_no_standard_knows, pixels_of_a_nanometre,
    a_volume_of_thirty_metres,
]  # fmt: skip


@pytest.mark.parametrize("make", VOLUMES)
def test_volumes(make, tmp_path):
    outcome = attempt(targets.TARGETS["nifti"], make(), tmp_path / "case")
    assert outcome == ("used" if make is units_that_no_standard_knows else "refused")


def manifest(**changes):
    files = dict(targets._bundle_files())
    content = json.loads(targets._listed(files, {CALIBRATION: files[CALIBRATION]})[MANIFEST])
    for path, value in changes.items():
        *parents, name = path.split("__")
        holder = content
        for parent in parents:
            holder = holder[parent]
        holder[name] = value
    return {**files, MANIFEST: json.dumps(content).encode()}


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule__T": 1000.5},  # TypeError out of NumPy
        {"schedule__T": 10**12},  # terabytes
        {"a\nb": 1},  # a message of two lines
        {"files__a\nb": "0"},
        {"grid__size": 32.0},  # TypeError out of NumPy
        {"grid__size": 10**9},
        {"grid__pixel_mm": float("nan")},
        {"grid__min_foreground": "x"},
        {"modalities": [1], "scored": [1]},
        {"model_card": 1},
        {"clip": "no"},
    ],
)
def test_manifests(changes, tmp_path):
    outcome = attempt(targets.TARGETS["manifest"], manifest(**changes), tmp_path / "case")
    assert outcome == "refused"


def test_a_calibration_that_knows_other_timesteps_than_it_visits(tmp_path):
    """ValueError out of NumPy, after all the work."""
    files = dict(targets._bundle_files())
    content = json.loads(files[CALIBRATION])
    content["presets"]["fast"]["conditions"]["stride"] = 1
    files[CALIBRATION] = json.dumps(content).encode()
    files = targets._listed(files, {CALIBRATION: files[CALIBRATION]})
    assert attempt(targets.TARGETS["calibration"], files, tmp_path / "case") == "refused"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("slices", 0, 0), ["a", "b"]),  # ValueError out of NumPy, when patients are read
        (("slices", 0, 2), {}),  # unhashable, when splits are
        (("slices", 0, 3), [1]),
        (("grid", "a\nb"), 1),
    ],
)
def test_slice_sets(place, value, tmp_path):
    files = dict(targets._slices())
    content = json.loads(files["slices.json"])
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    files["slices.json"] = json.dumps(content).encode()
    assert attempt(targets.TARGETS["slices"], files, tmp_path / "case") == "refused"


def rename_output(model):
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"


def other_shape(model):
    model.graph.node[-1].op_type = "ReduceSum"
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")


def fixed_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


@pytest.mark.parametrize("change", [rename_output, other_shape, fixed_batch])
def test_networks_with_other_inputs_or_outputs(change, tmp_path):
    """Errors out of ONNX Runtime, or out of what came after it (found by reading)."""
    model = onnx.load_from_string(targets._network())
    change(model)
    (tmp_path / NETWORK).write_bytes(model.SerializeToString())
    x_t, t = np.zeros((2, 1, 32, 32), np.float32), np.array([1, 5])
    with pytest.raises(BundleError, match="export it again"):
        targets.OnnxDenoiser(tmp_path / NETWORK, 1)(x_t, t)


def test_errors_are_one_line_whatever_they_quote():
    assert str(AnofpdmError("no preset 'a\n  b'\r\nhere")) == "no preset 'a b' here"
