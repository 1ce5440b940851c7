"""benchmarks/tried.py: every variant of a toy network gets a row, with figures or a reason."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from support import ROOT, bundle, needs_bf16

from anofpdm.export.parity import FP16_TOLERANCE, Parity, Trial
from anofpdm.runtime.bundle.bundle import NETWORK

MODULES = ("tried", "tried_variants", "quantised", "lesions", "machine")
WIDTH, SIZE = 16, 32


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quantised
    import tried
    import tried_variants

    yield tried, tried_variants, quantised
    for name in MODULES:
        sys.modules.pop(name, None)


def toy(path):
    """Four convolutions, a product, and a little of the timestep: a network as bundles hold it."""
    rng = np.random.default_rng(0)

    def tensor(name, *shape, scale=0.2):
        values = scale * rng.standard_normal(shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    weights = [
        tensor("w0", WIDTH, 1, 3, 3), tensor("w1", WIDTH, WIDTH, 3, 3),
        tensor("w2", WIDTH, WIDTH, 3, 3), tensor("w3", 2, WIDTH, 3, 3), tensor("m", SIZE, SIZE),
        *(tensor(f"b{i}", WIDTH if i < 3 else 2) for i in range(4)),
        numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per_sample"),
        numpy_helper.from_array(np.float32(1e-3), "share"),
    ]  # fmt: skip
    nodes, flow = [], "x_t"
    for i in range(4):
        nodes.append(helper.make_node("Conv", [flow, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}",
                                      pads=[1] * 4))  # fmt: skip
        nodes.append(helper.make_node("Sigmoid", [f"c{i}"], [f"s{i}"]))
        flow = f"s{i}"
    nodes += [
        helper.make_node("MatMul", ["c3", "m"], ["mixed"], "product"),
        helper.make_node("Cast", ["t"], ["tf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["tf", "share"], ["small"]),
        helper.make_node("Reshape", ["small", "per_sample"], ["when"]),
        helper.make_node("Add", ["mixed", "when"], ["both"]),
        helper.make_node("Split", ["both"], ["eps_healthy", "eps_null"], axis=1, num_outputs=2),
    ]
    shape = ["batch", 1, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x_t", TensorProto.FLOAT, shape),
         helper.make_tensor_value_info("t", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
         for name in ("eps_healthy", "eps_null")],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


@pytest.fixture
def place(benchmarks, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    toy(folder / NETWORK)
    (tmp_path / "made").mkdir()
    return benchmarks[1].SlicePosition(replace(bundle(size=SIZE), path=folder), tmp_path / "made")


def predicted(variants, place, name):
    denoiser = variants.VARIANTS[name].make(place)
    x_t = np.random.default_rng(1).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)
    return np.stack(denoiser(x_t, np.array([1, 250, 600])))


def test_every_variant_has_a_row(benchmarks, place, tmp_path, monkeypatch):
    tried, variants, _ = benchmarks
    monkeypatch.setattr(tried, "open_bundle", lambda path: place.bundle)
    four = Trial.short(1, SIZE, place.bundle.manifest.schedule)
    monkeypatch.setattr(Trial, "of", lambda bundle: four)
    result = tmp_path / "tried.json"
    done = CliRunner().invoke(tried.main, ["--rounds", "2", "--json", str(result)])
    assert done.exit_code == 0, (done.output, done.exception)
    rows = {row["variant"]: row for row in json.loads(result.read_text())["rows"]}
    assert list(rows) == list(variants.VARIANTS)
    shipped = rows[variants.SHIPPED]
    assert shipped["ratio"] == [1, 1, 1]
    assert shipped["parity"] == {"eps": 0, "M_t": 0, "H": 0, "t_e": 1, "dice": 1}
    assert shipped["beyond"] == []
    assert rows["batch 8"]["batch"] == 8
    assert rows["float16 network"]["reason"] == "the bundle has no float16 network"
    exact = rows["batch 1"]["parity"], rows["int8 Conv"]["parity"]
    assert exact[0]["eps"] < 1e-5 < exact[1]["eps"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert {line.count(" |") for line in lines[2:]} == {len(tried.HEAD)}
    strange = {**shipped, "beyond": ["M_t 1, tolerance 0.02"]}
    assert [tried.line(row)[8] for row in (shipped, strange)] == ["yes", "no"]
    for row in rows.values():
        assert "reason" in row or row["beyond"] == Parity(**row["parity"]).beyond(FP16_TOLERANCE)
    assert str(tmp_path) not in result.read_text()


def test_a_ratio_is_of_the_time_of_one_slice(benchmarks, place, monkeypatch):
    """A clock on which a batch takes as long as it is: 4 for the shipped one, 2 for twice 2."""
    tried, variants, _ = benchmarks
    now = [0.0]
    monkeypatch.setattr(tried.time, "process_time", lambda: now[0])

    def costing(seconds):
        def denoiser(x_t, t):
            now[0] += seconds
            return x_t, x_t

        return denoiser

    some = {variants.SHIPPED: costing(8.0), "batch 2": costing(6.0)}
    rows = tried.measured(place.bundle, some, variants.VARIANTS, 3)
    assert rows[variants.SHIPPED]["ms"] == [2000] * 3
    assert rows["batch 2"]["ms"] == [3000] * 3
    assert rows["batch 2"]["ratio"] == [1.5] * 3


@pytest.mark.parametrize(("module", "name"), [
    ("openvino", "OpenVINO, bf16"), ("onnxslim", "graph cleaned by onnxslim"),
])  # fmt: skip
def test_a_missing_package_is_a_reason(benchmarks, place, monkeypatch, module, name):
    tried, variants, _ = benchmarks
    monkeypatch.setitem(sys.modules, module, None)
    denoisers, reasons = tried.made(place, {name: variants.VARIANTS[name]})
    assert not denoisers
    assert re.search(rf"{module} .*: run pip install", reasons[name])
    line = tried.line({"variant": name, "reason": reasons[name]})
    assert len(line) == len(tried.HEAD)
    assert reasons[name] in line[1]


def test_int8_is_where_it_is_said_to_be(benchmarks, place):
    _, variants, _ = benchmarks
    want = predicted(variants, place, variants.SHIPPED)
    for name, kinds in (("int8 Conv", {"Conv"}), ("int8 Conv and MatMul", {"Conv", "MatMul"})):
        got = predicted(variants, place, name)
        assert 1e-6 < np.abs(got - want).max() / np.abs(want).max() < 0.1
        model = onnx.load(place.folder / f"int8-{'-'.join(sorted(kinds))}.onnx")
        makers = {output: node.op_type for node in model.graph.node for output in node.output}
        eight = {
            node.name
            for node in model.graph.node
            if node.op_type in ("Conv", "MatMul")
            and {makers.get(one) for one in node.input[:2]} == {"DequantizeLinear"}
        }
        assert eight == {"conv1", "conv2"} | ({"product"} if "MatMul" in kinds else set())
        assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        scales = {one.name: one.dims for one in model.graph.initializer}
        assert list(scales["w1_scale"]) == [WIDTH]  # per channel
        denoiser = variants.VARIANTS[name].make(place)
        assert any("QLinearConv" in kind for kind in denoiser.nodes)


def test_ranges_are_those_of_what_the_network_is_fed(benchmarks, place):
    """Against eq. 2: the slice at the first timestep, noise at the last, a known share between."""
    _, variants, quantised = benchmarks
    process = replace(quantised.Trial.of(place.bundle).recipe.process, L=999, stride=499)
    first, middle, last = quantised.calibration_feeds(process, 1, SIZE)
    assert (first["t"] == 0).all()
    assert (last["t"] == 998).all()
    clean = quantised.phantom_slices(8, 1, SIZE, seed=1)
    np.testing.assert_allclose(first["x_t"], clean, atol=0.06)
    abar = process.schedule.abar[middle["t"][0]]
    noise = middle["x_t"] - np.sqrt(abar) * clean
    assert noise.var() == pytest.approx(1 - abar, rel=0.05)
    assert last["x_t"].std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(last["x_t"].ravel(), clean.ravel())[0, 1]) < 0.05
    got = quantised.ranges(variants.plain(place), [first, last], ("Conv",))
    both = np.concatenate([first["x_t"], last["x_t"]])
    low, high = (float(np.ravel(one)[0]) for one in got["x_t"].range_value)
    assert (low, high) == pytest.approx((both.min(), both.max()))


def test_channels_last_computes_the_same(benchmarks, place):
    """By hand, with the convolutions for channels last put back between their transpositions."""
    _, variants, _ = benchmarks
    model = onnx.load(variants.plain(place))
    variants.channels_last(model)
    kinds = variants.kinds(model)
    assert kinds["com.microsoft.NhwcFusedConv"] == 4
    assert kinds["Conv"] == 0
    assert kinds["Transpose"] == 8
    nodes = []
    for node in model.graph.node:
        if node.op_type != "NhwcFusedConv":
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        nodes.append(helper.make_node("Transpose", [x], [f"{y}_in"], perm=[0, 3, 1, 2]))
        node.op_type, node.domain = "Conv", ""
        node.input[0], node.output[0] = f"{y}_in", f"{y}_out"
        nodes += [node, helper.make_node("Transpose", [f"{y}_out"], [y], perm=[0, 2, 3, 1])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, place.folder / "again.onnx")
    x_t = np.random.default_rng(1).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)
    got = np.stack(variants.OnnxRuntime(place.folder / "again.onnx")(x_t, np.array([1, 250, 600])))
    want = predicted(variants, place, variants.SHIPPED)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_openvino_fills_small_batches_up(benchmarks, place):
    needs_bf16()
    _, variants, _ = benchmarks
    want = predicted(variants, place, variants.SHIPPED)
    for name, atol in (("OpenVINO, f32", 1e-4), ("OpenVINO, f32, batch fixed", 1e-4)):
        got = predicted(variants, place, name)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=atol)


def test_a_variant_that_fails_when_run_is_a_reason(benchmarks, place):
    tried, variants, _ = benchmarks

    def broken(place):
        def denoiser(x_t, t):
            raise RuntimeError(f"{place.folder}/x.onnx | not so\nmore")

        return denoiser

    denoisers, reasons = tried.made(place, {"broken": variants.Variant(broken)})
    assert (denoisers, reasons) == ({}, {"broken": "x.onnx | not so"})
    assert "|" not in tried.line({"variant": "broken", "reason": reasons["broken"]})[1]


def test_blocks_are_forbidden_where_they_are_said_to_be(benchmarks, place):
    _, variants, _ = benchmarks
    blocked = variants.VARIANTS[variants.SHIPPED].make(place)
    unblocked = variants.VARIANTS["channels in blocks (NCHWc) forbidden"].make(place)
    if not any("nchwc" in kind for kind in blocked.nodes):
        pytest.skip("no blocks on this CPU")
    assert not any("nchwc" in kind for kind in unblocked.nodes)
