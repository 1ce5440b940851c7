import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from support import ROOT

from anofpdm.export.both_labels import BothLabels, torch_denoiser
from anofpdm.export.bundle_writer import write_bundle
from anofpdm.export.parity import (
    FP16_TOLERANCE,
    FP32_TOLERANCE,
    Parity,
    Trial,
    compare,
    pooled_dice,
)
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import (
    MANIFEST,
    NETWORK,
    NETWORK_FP16,
    SCHEMA_VERSION,
    open_bundle,
)
from anofpdm.runtime.errors import BundleError, OutputError, ParityError
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.checkpoint import Checkpoint
from anofpdm.train.config import TrainConfig, unet_config
from anofpdm.train.unet import HEALTHY, NULL, UNet


def checkpoint(**changes):
    config = unet_config("light", 2, 32, base_width=32, **changes)
    torch.manual_seed(0)
    unet = UNet(config)
    for parameter in unet.parameters():
        parameter.data.add_(0.03 * torch.randn_like(parameter))
    weights = unet.state_dict()
    return Checkpoint(
        config, TrainConfig(), ("flair", "t2"), Grid(32, 7.5), 1, weights, weights, {}, {}
    )


@pytest.fixture(scope="module")
def made():
    return checkpoint()


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    """Networks in float32 and float16."""
    path = tmp_path_factory.mktemp("bundle") / "model.anofpdm"
    return path, write_bundle(made, path, name="toy")


@pytest.fixture(scope="module")
def stored(made, tmp_path_factory):
    """One in float32 whose weights are stored as float16."""
    path = tmp_path_factory.mktemp("bundle") / "model.anofpdm"
    return path, write_bundle(made, path, name="toy", store_fp16=True, fp16=False)


@pytest.fixture(params=["fp32", "stored as fp16", "fp16"])
def exported(request):
    path, _ = request.getfixturevalue("stored" if request.param == "stored as fp16" else "both")
    return request.param, path / (NETWORK_FP16 if request.param == "fp16" else NETWORK)


def test_the_bundle_computes_what_the_checkpoint_computes(made, exported):
    kind, path = exported
    unet, denoise = made.network(), OnnxDenoiser(path)
    tolerance = 2e-5 if kind == "fp32" else 2e-2
    for batch in (1, 2, 5):
        rng = np.random.default_rng(batch)
        x_t = rng.standard_normal((batch, 2, 32, 32)).astype(np.float32)
        t = rng.integers(1, 1001, batch)
        got = denoise(x_t, t)
        for label, eps in zip((HEALTHY, NULL), got, strict=True):
            with torch.no_grad():
                want = unet(torch.from_numpy(x_t), torch.from_numpy(t - 1),
                            torch.full((batch,), label))  # fmt: skip
            assert eps.shape == x_t.shape
            assert eps.dtype == np.float32
            np.testing.assert_allclose(eps, want, atol=tolerance * float(want.abs().max()))


@pytest.mark.slow
def test_weights_that_both_networks_have_are_stored_once(made, both, tmp_path):
    """The same network as one that holds all of its weights, in a small part of the space."""
    write_bundle(made, tmp_path / "once", name="toy", store_fp16=True)
    whole, once = both[0] / NETWORK_FP16, tmp_path / "once" / NETWORK_FP16
    assert once.stat().st_size < whole.stat().st_size / 4
    x_t = np.random.default_rng(0).standard_normal((2, 2, 32, 32)).astype(np.float32)
    for got, want in zip(*(OnnxDenoiser(path)(x_t, np.array([7, 700])) for path in (once, whole)),
                         strict=True):  # fmt: skip
        np.testing.assert_array_equal(got, want)
    loaded, stored = onnx.load(once).graph.initializer, onnx.load(whole).graph.initializer
    assert [tensor.raw_data for tensor in loaded] == [tensor.raw_data for tensor in stored]
    # Engines are named by this file's hash, which therefore has to change with the weights.
    (named,) = onnx.load(once, load_external_data=False).metadata_props
    assert named.value == open_bundle(tmp_path / "once").manifest.files[NETWORK]
    (tmp_path / "once" / NETWORK).unlink()
    with pytest.raises(BundleError):
        OnnxDenoiser(once)


@pytest.mark.parametrize("kind", ["both", "stored"])
def test_manifest_and_hashes(request, kind):
    path, parity = request.getfixturevalue(kind)
    bundle, networks = open_bundle(path), {NETWORK, NETWORK_FP16} if kind == "both" else {NETWORK}
    manifest = bundle.manifest
    assert manifest.modalities == ("flair", "t2")
    assert manifest.precision == "fp32"
    assert manifest.provenance["weights_stored_as"] == ("fp32" if kind == "both" else "fp16")
    assert set(manifest.files) == set(parity) == networks
    assert {file.name for file in path.iterdir()} == networks | {MANIFEST}
    assert manifest.parity == {name: dataclasses.asdict(one) for name, one in parity.items()}
    assert bundle.network_fp16 == (path / NETWORK_FP16 if kind == "both" else None)
    assert manifest.architecture["base_width"] == 32
    assert not bundle.calibrations
    assert json.loads((path / MANIFEST).read_text())["schema_version"] == SCHEMA_VERSION


def test_each_network_is_compared_with_pytorch(both):
    _, parity = both
    assert parity[NETWORK].eps < 1e-4
    assert 10 * parity[NETWORK].eps < parity[NETWORK_FP16].eps < 2e-2


def test_graph_has_the_agreed_inputs_and_outputs(exported):
    _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    outputs = {o.name: o.type.tensor_type for o in model.graph.output}
    assert list(inputs) == ["x_t", "t"]
    assert list(outputs) == ["eps_healthy", "eps_null"]
    assert inputs["t"].elem_type == TensorProto.INT64
    for value in (inputs["x_t"], *outputs.values()):
        assert value.elem_type == TensorProto.FLOAT
        assert value.shape.dim[0].dim_param
        assert [d.dim_value for d in value.shape.dim][1:] == [2, 32, 32]


def test_types_inside_the_graph(exported):
    kind, path = exported
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    normalisations = [
        node
        for node in model.graph.node
        if node.op_type in ("InstanceNormalization", "GroupNormalization")
    ]
    assert len(convolutions) > 10
    assert len(normalisations) > 10
    computed = TensorProto.FLOAT16 if kind == "fp16" else TensorProto.FLOAT
    assert {types[node.input[1]] for node in convolutions} == {computed}
    assert {types[node.input[0]] for node in normalisations} == {TensorProto.FLOAT}
    stored = [t for t in model.graph.initializer if np.prod(t.dims) >= 1024]
    halves = kind != "fp32"
    assert any(t.data_type == TensorProto.FLOAT16 for t in stored) == halves


def test_both_labels_go_through_as_one_batch(made):
    seen = []
    network = BothLabels(made.network(), "fp32")
    network.unet.out.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    with torch.no_grad():
        network(torch.zeros(3, 2, 32, 32), torch.zeros(3, dtype=torch.int64))
    assert seen == [6]


@pytest.mark.slow
def test_a_network_that_differs_is_not_exported(made, tmp_path, monkeypatch):
    """The exported labels are swapped: eps alone could look plausible, the gate must not."""
    honest = BothLabels.forward
    monkeypatch.setattr(BothLabels, "forward", lambda self, x_t, t: honest(self, x_t, t)[::-1])
    with pytest.raises(ParityError, match="differs from PyTorch: eps"):
        write_bundle(made, tmp_path / "model.anofpdm", name="toy")
    assert list(tmp_path.iterdir()) == []


def test_nothing_tells_where_it_was_exported(exported):
    """The exporter notes a stack trace for every node."""
    content = exported[1].read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content
    assert b"network.py" not in content


@pytest.mark.slow
def test_an_fp16_network_that_differs_is_not_exported(made, tmp_path, monkeypatch):
    """It alone: the other one passes the gate before."""
    honest = BothLabels.__init__

    def coarse(self, unet, precision, folded=True):
        honest(self, unet, precision, folded)
        if precision == "fp16":
            self.unet.out[-1].weight.data.mul_(1.1)

    monkeypatch.setattr(BothLabels, "__init__", coarse)
    repair = "; nothing was written: --no-fp16 leaves this network out"
    with pytest.raises(ParityError, match=f"^{NETWORK_FP16} differs from PyTorch: eps .*{repair}"):
        write_bundle(made, tmp_path / "model.anofpdm", name="toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_network_too_large_for_fp16_is_not_exported_as_such(made, tmp_path):
    """Its values pass 65504 on the way; float32 holds them."""
    weights = {name: tensor.clone() for name, tensor in made.ema.items()}
    weights["input_blocks.1.0.in_layers.2.weight"] *= 1e7  # a group normalisation follows
    large = dataclasses.replace(made, ema=weights)
    message = f"^{NETWORK_FP16} gives infinite or undefined predictions.*: --no-fp16 leaves"
    with pytest.raises(ParityError, match=message):
        write_bundle(large, tmp_path / "model.anofpdm", name="toy")
    assert list(tmp_path.iterdir()) == []


def test_every_figure_of_the_gate_can_fail():
    good = Parity(eps=0, M_t=0, H=0, t_e=1, dice=1)
    good.check(FP32_TOLERANCE)
    for change in ({"eps": 1.0}, {"M_t": 1.0}, {"H": 1.0}, {"t_e": 0.5}, {"dice": 0.5},
                   {"M_t": float("nan")}):  # fmt: skip
        with pytest.raises(ParityError, match=f"PyTorch: {next(iter(change))}"):
            dataclasses.replace(good, **change).check(FP16_TOLERANCE)


@pytest.mark.parametrize(
    ("figure", "gain"),
    [
        ("M_t", lambda t: np.full(t.shape, 1.002)),
        ("H", lambda t: np.full(t.shape, 1.02)),
        ("t_e", lambda t: np.where(t == 1, 1e4, 1.0)),
    ],
)
def test_gate_sees_drifts_of_the_guidance(made, figure, gain):
    """What separates the labels is stretched, by a factor that depends on the timestep."""
    honest = torch_denoiser(made.network())

    def drifted(x_t, t):
        eps_healthy, eps_null = honest(x_t, t)
        stretch = gain(t).astype(np.float32)[:, None, None, None]
        return eps_null + stretch * (eps_healthy - eps_null), eps_null

    blind = Parity(eps=1e9, M_t=1e9, H=1e9, t_e=0, dice=0)
    one_eyed = dataclasses.replace(blind, **{figure: getattr(FP32_TOLERANCE, figure)})
    parity = compared(honest, drifted, 2, 32)
    parity.check(blind)
    with pytest.raises(ParityError, match=f"PyTorch: {figure}"):
        parity.check(one_eyed)


def compared(reference, other, channels, size):
    trial = Trial.short(channels, size, Schedule())
    return compare(NumpyBackend(reference), NumpyBackend(other), trial)


def certain(healthy, null):
    """A network that is sure of the clean slice, which is the same everywhere."""

    def denoise(x_t, t):
        a = Schedule().abar[t - 1][:, None, None, None]
        both = [(x_t - np.sqrt(a) * clean) / np.sqrt(1 - a) for clean in (healthy, null)]
        return both[0].astype(np.float32), both[1].astype(np.float32)

    return denoise


def test_gate_sees_another_mask():
    """Sure of a dark slice, the map is brightest on the skull; of a bright one, outside."""
    parity = compared(certain(-0.9, -0.8), certain(0.9, 0.8), 1, 128)
    assert parity.dice < 0.1
    with pytest.raises(ParityError, match="PyTorch: dice"):
        parity.check(dataclasses.replace(FP32_TOLERANCE, eps=1e9, M_t=1e9, H=1e9, t_e=0))


@pytest.mark.slow
def test_a_network_agrees_with_itself(made):
    honest = torch_denoiser(made.network())
    assert compared(honest, honest, 2, 32) == Parity(0, 0, 0, 1, 1)


def test_half_precision_keeps_abar(made):
    network = BothLabels(made.network(), "fp16")
    want = torch.from_numpy(Schedule().abar.astype(np.float32))
    assert torch.equal(network.unet.abar, want)


def test_existing_bundles_are_not_overwritten(made, tmp_path):
    (tmp_path / "model.anofpdm").mkdir()
    with pytest.raises(OutputError, match="exists: remove it"):
        write_bundle(made, tmp_path / "model.anofpdm", name="toy")


@pytest.mark.slow
def test_eps_prediction_of_the_reference_kind_exports(tmp_path):
    plain = checkpoint(prediction="eps", patch=1, first_silu=False, attention_resolutions=(16, 8))
    assert write_bundle(plain, tmp_path / "m.anofpdm", name="toy")[NETWORK].eps < 1e-4


@pytest.mark.slow
def test_x0_prediction_with_the_label_in_attention_alone_exports(tmp_path):
    made = checkpoint(prediction="x0", label_in="attention")
    made.ema["class_emb.2.weight"].mul_(10)
    parity = write_bundle(made, tmp_path / "m.anofpdm", name="toy")
    assert parity[NETWORK].eps < 1e-4
    assert parity[NETWORK_FP16].eps < 2e-2


def test_phantoms_are_heads():
    slices = phantom_slices(4, 2, 64)
    assert slices.shape == (4, 2, 64, 64)
    assert slices.min() == -1
    assert slices.max() <= 1
    assert (slices[:, :, 0, 0] == -1).all()
    assert np.array_equal(slices, phantom_slices(4, 2, 64))


def test_masks_are_compared_all_together():
    """One that is lost among large ones that agree weighs as much as its pixels."""
    large, small, empty = (np.full((20, 20), one) for one in (True, False, False))
    small[0, :8] = True
    assert pooled_dice([(large, large), (small, empty)]) == 2 * 400 / (400 + 400 + 8)
    assert pooled_dice([(small, empty)]) == 0
    assert pooled_dice([(empty, empty)]) == 1
