"""What is fuzzed: for each kind of input, good examples, how to damage one, and what to do with it.

A target is added to ``TARGETS``; the worker and the tests go through the table.
"""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from dicom_files import write_enhanced, write_series
from fuzz.mutate import damaged, damaged_json
from support import bundle, head, toy_network, write_toy_bundle

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import CALIBRATION, MANIFEST, NETWORK, open_bundle
from anofpdm.runtime.bundle.calibration import EarlyStop
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.source import open_source
from anofpdm.runtime.dicom.seg import write_seg
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import sha256
from anofpdm.runtime.volume.grid import Grid
from anofpdm.runtime.volume.nifti import load_image, save_image
from anofpdm.runtime.volume.plausibility import Plausibility
from anofpdm.train.dataset import SliceRecord, open_sliceset, writing

Files = dict[str, bytes]
Rng = np.random.Generator


@dataclass(frozen=True)
class Target:
    """``make``: files of a damaged example, by name, from a generator; ``use``: what a user would
    do with the folder that holds them: it succeeds or raises AnofpdmError; ``weight``: its share
    of the inputs."""

    make: Callable[[Rng], Files]
    use: Callable[[Path], None]
    weight: int = 1


def use_volume(folder: Path) -> None:
    """Segment the one volume of a folder, and write the mask."""
    names = sorted(path for path in folder.iterdir() if path.suffix != ".img")
    image = load_image(names[0])
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(image)
    output = folder / "out.nii.gz"
    save_image(segmentation.image, output)
    mask = nib.load(output)
    assert mask.shape == image.shape
    assert set(np.unique(mask.dataobj)) <= {0, 1}


@cache
def _image(kind: str) -> Files:
    """A good image's files."""
    volume = np.rint(head((20, 24, 8)))
    affine = np.diag([-8.0, 8.0, 5.0, 1.0])
    if kind == "analyze":
        image = nib.AnalyzeImage(volume.astype(np.int16), affine)
    elif kind == "pair":
        image = nib.Nifti1Pair(volume.astype(np.float32), affine)
    else:
        image = (nib.Nifti2Image if kind == "nifti2" else nib.Nifti1Image)(volume, affine)
        image.set_data_dtype({"nifti2": np.float64, "scaled": np.int16}.get(kind, np.int16))
        if kind == "scaled":
            image.header.set_slope_inter(0.5, -20)
        if kind == "extended":
            image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment"))
    if kind in ("analyze", "pair"):
        files = image.make_file_map({key: None for key, _ in image.files_types})
        for one in files.values():
            one.fileobj = BytesIO()
        image.to_file_map(files)
        suffix = {"image": ".img", "header": ".hdr"}
        return {f"v{suffix[key]}": files[key].fileobj.getvalue() for key in suffix}
    return {"v.nii": image.to_bytes()}


def make_plain(kind: str, head_bytes: int = 352) -> Callable[[Rng], Files]:
    """A damaged image, or a damaged file of a pair."""

    def make(rng: Rng) -> Files:
        files = dict(_image(kind))
        name = sorted(files)[rng.integers(len(files)) if rng.random() < 0.3 else 0]
        files[name] = damaged(files[name], rng, head_bytes)
        return files

    return make


def make_zipped(rng: Rng) -> Files:
    """A damaged image that is compressed, or a compressed one that is damaged."""
    raw = _image("extended" if rng.random() < 0.5 else "scaled")["v.nii"]
    if rng.random() < 0.7:
        return {"v.nii.gz": gzip.compress(damaged(raw, rng), 1)}
    return {"v.nii.gz": damaged(gzip.compress(raw, 1), rng, 12)}


@cache
def _bundle_files() -> Files:
    """A good bundle, with everything that a calibration may hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_toy_bundle(Path(folder, "toy"))
        content = json.loads((path / CALIBRATION).read_text())
        preset = content["presets"]["fast"]
        decision = LogisticDecision(1.0, 0.0, 0.0)
        stop = EarlyStop(0.8, 3, 0.5, decision, (0.3,), 0.995, 0.9, 0.9, 4.0, 6)
        plausibility = Plausibility((-2.0,) * 6, (1.0,) * 6, 1.0)
        candidate = {"L": 301, "w": 3.0, "Cos_w": 0.5, "cosine_accuracy": 0.5,
                     "logistic": preset["logistic"], "calibrated_accuracy": None,
                     "M_max": [0.1]}  # fmt: skip
        preset.update(
            early_stop={**stop.__dict__, "logistic": stop.logistic.__dict__},
            plausibility=plausibility.__dict__,
            candidates=[candidate],
            peaks={"at_L": 0.1, "healthy_t_e": 3.0, "unhealthy_t_e": 4.0},
            warnings=["a line"],
        )
        files = {name: (path / name).read_bytes() for name in (NETWORK, MANIFEST)}
    return {**files, CALIBRATION: json.dumps(content).encode()}


def _listed(files: Files, folder_hash: dict[str, bytes]) -> Files:
    """The bundle with its manifest's hashes made to match."""
    manifest = json.loads(files[MANIFEST])
    for name, raw in folder_hash.items():
        manifest["files"][name] = _sha256(raw)
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def make_manifest(rng: Rng) -> Files:
    files = dict(_bundle_files())
    files = _listed(files, {CALIBRATION: files[CALIBRATION]})
    return {**files, MANIFEST: damaged_json(json.loads(files[MANIFEST]), rng)}


def make_calibration(rng: Rng) -> Files:
    files = dict(_bundle_files())
    files[CALIBRATION] = damaged_json(json.loads(files[CALIBRATION]), rng)
    return _listed(files, {CALIBRATION: files[CALIBRATION]})


def use_bundle(folder: Path) -> None:
    """Open a bundle and segment with it; calibrations are made to fit its manifest."""
    loaded = open_bundle(folder)
    for name, calibration in loaded.calibrations.items():
        c = calibration.conditions
        conditions = loaded.conditions(c.encoding, c.L, c.stride, c.spacing)
        calibration = replace(calibration, conditions=conditions)
        loaded = replace(loaded, calibrations={**loaded.calibrations, name: calibration})
    resolve(loaded, Options())
    images = [nib.Nifti1Image(head(), np.diag([7.5, 7.5, 5, 1]))] * len(loaded.manifest.modalities)
    segmentation = Segmenter(loaded, NumpyBackend(toy_network)).segment(images)
    assert segmentation.mask.max() <= 1


@cache
def _network() -> bytes:
    """A small ONNX file with a network's inputs and outputs."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.full((1, 1, 3, 3), 0.1, np.float32)
    shape = ["B", 1, 32, 32]
    nodes = [
        helper.make_node("Conv", ["x_t", "kernel"], ["smooth"], pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["t"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "share"], ["time"]),
        helper.make_node("Reshape", ["time", "four"], ["column"]),
        helper.make_node("Add", ["smooth", "column"], ["eps_null"]),
        helper.make_node("Tanh", ["eps_null"], ["eps_healthy"]),
    ]
    graph = helper.make_graph(
        nodes, "toy",
        [helper.make_tensor_value_info("x_t", TensorProto.FLOAT, shape),
         helper.make_tensor_value_info("t", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
         for name in ("eps_healthy", "eps_null")],
        [numpy_helper.from_array(kernel, "kernel"),
         numpy_helper.from_array(np.float32(1e-3), "share"),
         numpy_helper.from_array(np.array([-1, 1, 1, 1]), "four")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _rewired(rng: Rng) -> bytes:
    """The network as a file that is well formed, with something else in some of its fields."""
    import onnx

    model = onnx.load_from_string(_network())
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] + ["x"]
    for _ in range(rng.integers(1, 4)):
        node = graph.node[rng.integers(len(graph.node))]
        value = [*graph.input, *graph.output][rng.integers(4)]
        weights = graph.initializer[rng.integers(len(graph.initializer))]
        number = int(rng.choice([0, 1, -1, 2, 7, 11, 2**31, -(2**62), 2**40]))
        dims = value.type.tensor_type.shape.dim
        match rng.integers(9):
            case 0:
                node.op_type = str(rng.choice(["Add", "Conv", "Loop", "Tile", "Expand", "Nothing"]))
            case 1:
                node.input[rng.integers(len(node.input))] = str(rng.choice(names))
            case 2:
                node.output[0] = str(rng.choice(names))
            case 3:
                value.name = str(rng.choice(names))
            case 4:
                dims[rng.integers(len(dims))].dim_value = number
            case 5:
                value.type.tensor_type.elem_type = int(rng.integers(17))
            case 6 if len(weights.dims):
                weights.dims[rng.integers(len(weights.dims))] = number
            case 7:
                weights.data_type = int(rng.integers(17))
            case _:
                raw = np.frombuffer(weights.raw_data, np.uint8).copy()
                raw[rng.integers(len(raw))] = rng.integers(256)
                weights.raw_data = raw.tobytes()
    return bytes(model.SerializeToString())


def make_network(rng: Rng) -> Files:
    files = dict(_bundle_files())
    files[NETWORK] = damaged(_network(), rng, 10**6) if rng.random() < 0.4 else _rewired(rng)
    content = json.loads(files[CALIBRATION])
    content["presets"]["fast"]["conditions"]["network_sha256"] = _sha256(files[NETWORK])
    files[CALIBRATION] = json.dumps(content).encode()
    return _listed(files, {name: files[name] for name in (NETWORK, CALIBRATION)})


def use_network(folder: Path) -> None:
    loaded = open_bundle(folder)
    assert sha256(loaded.network) == loaded.manifest.files[NETWORK]
    network = OnnxDenoiser(loaded.network, 1)
    network(np.zeros((2, 1, 32, 32), np.float32), np.array([1, 5]))


@cache
def _slices() -> Files:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with writing(Path(folder), ("a",), Grid(16, 8.0), {"made": "here"}) as writer:
            for i in range(4):
                record = SliceRecord(f"P{i // 2}", i, "val" if i else "train", bool(i % 2), True)
                x0 = rng.uniform(-1, 1, (1, 16, 16)).astype(np.float32)
                writer.add(record, x0, x0[0] > 0)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def make_slices(rng: Rng) -> Files:
    files = dict(_slices())
    if rng.random() < 0.8:
        files["slices.json"] = damaged_json(json.loads(files["slices.json"]), rng)
    else:
        name = sorted(files)[rng.integers(3)]
        files[name] = damaged(files[name], rng)
    return files


def use_slices(folder: Path) -> None:
    sliceset = open_sliceset(folder)
    assert len(sliceset.unhealthy) == len(sliceset.patients) == len(sliceset)
    for name in {record.split for record in sliceset.records}:
        part = sliceset.split(name)
        for i in range(len(part)):
            assert part.x0(i).shape == (
                len(sliceset.modalities),
                sliceset.grid.size,
                sliceset.grid.size,
            )
            part.mask(i)


@cache
def _series(enhanced: bool) -> Files:
    """A good DICOM series: a file a slice, or all of them in one."""
    stored, affine = np.rint(head((20, 24, 6))).astype(np.int16), np.diag([-8.0, 8.0, 5.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        if enhanced:
            write_enhanced(Path(folder, "enhanced.dcm"), stored, affine)
        else:
            write_series(Path(folder), stored, affine)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def make_series(rng: Rng) -> Files:
    files = dict(_series(rng.random() < 0.4))
    name = sorted(files)[rng.integers(len(files))]
    # Most of the file is pixels: the elements before them are what can mislead.
    files[name] = damaged(files[name], rng, len(files[name]) - 900)
    return files


def use_series(folder: Path) -> None:
    """Segment the series, and write the mask as NIfTI and as DICOM SEG."""
    source = open_source([folder], True)
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(source.images)
    output = folder / "out.dcm"
    series = source.check_seg(output)
    write_seg(output, segmentation.mask, series, model="toy", version="0", bundle_sha256="0" * 64)
    assert output.stat().st_size > 500


TARGETS = {
    "nifti": Target(make_plain("plain"), use_volume, 4),
    "scaled": Target(make_plain("scaled"), use_volume, 2),
    "extended": Target(make_plain("extended", 400), use_volume, 2),
    "nifti2": Target(make_plain("nifti2", 544), use_volume, 3),
    "pair": Target(make_plain("pair"), use_volume, 2),
    "analyze": Target(make_plain("analyze"), use_volume, 2),
    "zipped": Target(make_zipped, use_volume, 4),
    "manifest": Target(make_manifest, use_bundle, 3),
    "calibration": Target(make_calibration, use_bundle, 3),
    "network": Target(make_network, use_network, 2),
    "slices": Target(make_slices, use_slices, 3),
    "dicom": Target(make_series, use_series, 2),
}
