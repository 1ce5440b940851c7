"""The network in bfloat16, and that nothing calibrated in FP32 is used with it."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import pytest
from support import (
    ROOT,
    bundle,
    call,
    integer_network,
    needs_bf16,
    toy_network,
    write_integer_network,
)

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.infer import main as infer
from anofpdm.runtime.errors import BundleError, DeviceError, MissingExtraError, OptionsError
from anofpdm.runtime.segmenter import Segmenter

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((3, 1, 128, 128)).astype(np.float32), np.array([1, 200, 600])


@pytest.fixture(scope="module")
def bf16():
    needs_bf16()
    from anofpdm.runtime.backends.cpu.openvino import Bf16Denoiser

    return Bf16Denoiser


@pytest.fixture
def twins():
    """A calibration in FP32, and two in bfloat16, one of which visits the same timesteps."""
    toy = bundle()
    fast = toy.calibrations["fast"]
    same = replace(fast, conditions=toy.conditions("ddim", 301, 60, "even", "bf16"), w=3.0)
    other = replace(fast, conditions=toy.conditions("ddim", 301, 30, "even", "bf16"))
    return replace(toy, calibrations={"fast": fast, "finer-bf16": other, "fast-bf16": same})


def test_it_is_the_network_rounded(bf16):
    """To 8 bits of mantissa: a relative error of some 2 to the power of -8, and not none."""
    path = open_bundle(DEFAULT).network
    want, got = np.stack(OnnxDenoiser(path, 1)(X, T)), np.stack(bf16(path, 1)(X, T))
    assert got.dtype == np.float32
    apart = np.abs(got - want).max() / np.abs(want).max()
    assert 2**-11 < apart < 2**-6


@pytest.mark.parametrize("threads", [1, 2])
def test_predictions_do_not_depend_on_threads_or_the_batch(bf16, tmp_path, threads):
    """To the last bit, where everything is an integer that bfloat16 holds."""
    network = bf16(write_integer_network(tmp_path / "unet.onnx"), threads)
    x_t, t = RNG.integers(-2, 3, (7, 1, 8, 8)).astype(np.float32), np.arange(1, 8)
    for batch in (7, 5, 3, 2, 1):
        for _ in range(3):
            got = np.stack(network(x_t[:batch], t[:batch]))
            np.testing.assert_array_equal(got, np.stack(integer_network(x_t[:batch], t[:batch])))


def test_the_default_model_depends_on_threads_and_the_batch_by_rounding_at_most(bf16):
    """Where a sum comes out on the other side of a rounding to 8 bits, predictions differ by less
    than they do from FP32."""
    path = open_bundle(DEFAULT).network
    want, two = np.stack(bf16(path, 1)(X, T)), bf16(path, 2)
    for batch in (3, 1):
        got = np.stack(two(X[:batch], T[:batch]))
        atol = 2**-6 * np.abs(want).max()
        np.testing.assert_allclose(got, want[:, :batch], rtol=0, atol=atol)


def test_predictions_stay_when_others_are_made(bf16):
    """They are no views of memory that is used again."""
    network = bf16(open_bundle(DEFAULT).network, 1)
    first = network(X[:1], T[:1])[0]
    kept = first.copy()
    network(X[1:2], T[1:2])
    np.testing.assert_array_equal(first, kept)


def test_networks_that_are_none_are_refused(bf16, tmp_path):
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(BundleError, match=r"unet\.onnx cannot be loaded: .*: export it again"):
        bf16(path)
    model = onnx.load(DEFAULT / "unet.onnx")
    model.graph.output[1].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"no network of ours, it lacks eps_"):
        bf16(path)


def test_it_is_never_used_by_default(twins):
    assert resolve(twins, Options()).preset == "fast"
    plan = resolve(twins, Options(preset="fast-bf16"))
    assert plan.as_json()["conditions"]["precision"] == "bf16"
    assert str(plan.calibration.conditions) == "ddim, L 301, stride 60, bf16"


def test_calibrations_go_with_the_precision_they_were_made_in(twins):
    lowered = NumpyBackend(toy_network, precision="bf16")
    assert Segmenter(twins, lowered, options=Options(preset="fast-bf16")).plan.calibration.w == 3
    with pytest.raises(OptionsError, match=r"preset fast was calibrated in fp32, .* as bf16"):
        Segmenter(twins, lowered)
    with pytest.raises(OptionsError, match=r"preset fast-bf16 was calibrated in bf16, .* as fp32"):
        Segmenter(twins, NumpyBackend(toy_network), options=Options(preset="fast-bf16"))


def test_it_is_for_the_cpu(twins):
    for device in ("cuda", "trt:1"):
        with pytest.raises(OptionsError, match=f"for the CPU: choose a preset .* for {device}"):
            open_device(device, twins, precision="bf16")


def test_what_is_missing_is_named(monkeypatch):
    default = open_bundle(DEFAULT)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anofpdm\[bf16\]'"):
        open_device("cpu", default, precision="bf16")
    old = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: old))
    with pytest.raises(DeviceError, match="does not compute in bfloat16: choose a preset"):
        open_device("auto", default, precision="bf16")


def test_the_command_takes_it(bf16, tmp_path):
    image = nib.load(ROOT / "examples/flair.nii.gz").slicer[:, :, 26:29]
    nib.save(image, tmp_path / "flair.nii.gz")
    printed = call(infer, tmp_path / "flair.nii.gz", "-o", tmp_path / "mask.nii.gz",
                   "--preset", "fast-bf16", "-v", "--stats", tmp_path / "stats.json")  # fmt: skip
    assert "device: cpu in bfloat16" in printed
    assert "preset fast-bf16" in printed
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["provenance"]["conditions"]["precision"] == "bf16"
    assert "openvino" in stats["provenance"]["versions"]
