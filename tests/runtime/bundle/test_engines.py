import dataclasses
import hashlib
import json
import os
import sys

import pytest
from support import bundle as toy_bundle
from support import write_toy_bundle

from anofpdm.export.bundle_update import (
    check_engine_folder,
    write_calibration,
    write_engine,
    write_manifest,
)
from anofpdm.runtime.bundle.bundle import MANIFEST, NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.engines import (
    ENGINES,
    FLAVOURS,
    Engine,
    find_engine,
    flavour_of,
    load_tensorrt,
    read_engine,
    read_engines,
)
from anofpdm.runtime.errors import BundleError, MissingExtraError, OptionsError, OutputError
from anofpdm.runtime.util.files import sha256

HERE = {"gpu": "NVIDIA H200", "compute_capability": "9.0", "flavour": "tensorrt_rtx",
        "version": "1.7.1.116"}  # fmt: skip
DATA = b"an engine"


def add_fp16(path, content=b"an FP16 network"):
    (path / NETWORK_FP16).write_bytes(content)
    manifest = open_without_check(path)
    files = {**manifest["files"], NETWORK_FP16: sha256(path / NETWORK_FP16)}
    (path / MANIFEST).write_text(json.dumps({**manifest, "files": files}))


def open_without_check(path):
    return json.loads((path / MANIFEST).read_text())


@pytest.fixture
def path(tmp_path):
    path = write_toy_bundle(tmp_path / "toy.anofpdm")
    add_fp16(path)
    return path


def record(path, **changes):
    network = sha256(path / NETWORK_FP16)
    fields = {**HERE, "network_sha256": network, "slots": (1, 4), "parity": {"eps": 0.001},
              "provenance": {"driver": "580.1", "seconds": 3.5}}  # fmt: skip
    return Engine(**{**fields, **changes})


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refuse(message, call, *arguments, error=BundleError, **named):
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_what_was_written_is_found_and_read(path):
    written = write_engine(open_bundle(path), record(path), DATA)
    assert written == dataclasses.replace(record(path), sha256=hashlib.sha256(DATA).hexdigest())
    bundle = open_bundle(path)
    engine = find_engine(bundle, **HERE)
    assert engine == written
    assert engine.slots == (1, 4)
    assert read_engine(bundle, engine) == DATA
    assert [file.name for file in (path / ENGINES).iterdir()] == [engine.file_name]


def test_the_name_is_made_of_what_it_is_for(path):
    network = sha256(path / NETWORK_FP16)
    name = f"nvidia-h200_sm90_tensorrt_rtx-1.7.1.116_fp16_{network[:12]}.engine"
    assert record(path).file_name == name
    strange = record(
        path, gpu='GeForce: "RTX" 4090/Ti \\ <x>|?* é' + 300 * "x", version="10.12 rc/1"
    )
    assert strange.file_name.startswith("geforce-rtx-4090-ti-x-xxx")
    assert "_tensorrt_rtx-10.12-rc-1_" in strange.file_name
    assert len(strange.file_name) < 200
    assert set(strange.file_name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA L4"}, "nvidia-l4_sm90_[^ ]* is for NVIDIA L4"),
        ({"compute_capability": "12.0"}, "[^ ]*sm120[^ ]* is for compute capability 12.0"),
        ({"flavour": "tensorrt", "version": "11.4.0"}, "is for tensorrt 11.4.0"),
        ({"version": "1.6.0"}, "is for tensorrt_rtx 1.6.0"),
        ({"gpu": "NVIDIA L4", "network_sha256": "f" * 64}, "is for another network"),
    ],
)
def test_an_engine_for_something_else(path, changes, reason):
    made = open_bundle(path)
    if "network_sha256" in changes:
        # What is left when a bundle is exported again into the same folder.
        other = record(path, **changes)
        listed = {other.file_name: dataclasses.asdict(other)}
        write_manifest(path, dataclasses.replace(made.manifest, engines=listed))
    else:
        write_engine(made, record(path, **changes), DATA)
    message = (
        rf"has no engine for NVIDIA H200 \(compute capability 9.0\) with tensorrt_rtx 1.7.1.116 "
        rf"\([^(]*{reason}\): run anofpdm-export engine {path}$"
    )
    refuse(message, find_engine, open_bundle(path), **HERE)
    write_engine(open_bundle(path), record(path), DATA)
    assert find_engine(open_bundle(path), **HERE).file_name == record(path).file_name


def test_no_engine_at_all(path):
    spaced = path.rename(path.with_name("my model.anofpdm"))
    message = r"with tensorrt_rtx 1.7.1.116: run anofpdm-export engine '.*/my model.anofpdm'$"
    refuse(message, find_engine, open_bundle(spaced), **HERE)


def test_many_engines_for_others(path):
    for gpu in "abcd":
        write_engine(open_bundle(path), record(path, gpu=gpu), DATA)
    refuse(r"is for a; b_.* is for b; and 2 more\): run", find_engine, open_bundle(path), **HERE)


def test_a_bundle_without_fp16_network(tmp_path):
    path = write_toy_bundle(tmp_path / "toy.anofpdm")
    made = open_bundle(path)
    assert made.network_fp16 is None
    message = f"{path} has no {NETWORK_FP16}, which engines are built from: export it again"
    refuse(message, find_engine, made, **HERE)
    engine = Engine(**HERE, network_sha256="0" * 64, slots=(1,))
    refuse(message, write_engine, made, engine, DATA)
    assert not (path / ENGINES).exists()


def test_an_fp16_network_is_part_of_the_bundle(path):
    assert open_bundle(path).network_fp16 == path / NETWORK_FP16
    (path / NETWORK_FP16).write_bytes(b"another")
    refuse(f"{NETWORK_FP16} was altered", open_bundle, path)
    (path / NETWORK_FP16).unlink()
    refuse(f"lacks {NETWORK_FP16}", open_bundle, path)


def test_damaged_engine_files_matter_to_who_reads_them(path):
    engine = write_engine(open_bundle(path), record(path), DATA)
    file = path / ENGINES / engine.file_name
    file.write_bytes(DATA[:-1])
    bundle = open_bundle(path)
    repair = f"run anofpdm-export engine {path}"
    refuse(rf"{file} was altered \(SHA-256\): {repair}", read_engine, bundle, engine)
    file.unlink()
    bundle = open_bundle(path)
    refuse(f"{file} is missing: {repair}", read_engine, bundle, find_engine(bundle, **HERE))
    file.mkdir()
    refuse(rf"{file} cannot be read \(Is a directory\): {repair}", read_engine, bundle, engine)
    file.rmdir()
    file.parent.rmdir()
    refuse(f"{file} is missing: {repair}", read_engine, open_bundle(path), engine)


@pytest.mark.parametrize(
    "change",
    [
        {"compute_capability": "90"},
        {"compute_capability": 9.0},
        {"flavour": "onnxruntime"},
        {"flavour": []},
        {"precision": "int8"},
        {"gpu": ""},
        {"gpu": 5},
        {"version": ""},
        {"version": 1},
        {"network_sha256": "abc"},
        {"slots": []},
        {"slots": [4, 1]},
        {"slots": [0]},
        {"slots": ["1"]},
        {"slots": None},
        {"parity": {"eps": "much"}},
        {"parity": [1]},
        {"provenance": [1]},
        {"extra": 1},
        {"gpu": "NVIDIA L4"},
    ],
)
def test_damaged_records(path, change):
    engine = write_engine(open_bundle(path), record(path), DATA)
    manifest = open_without_check(path)
    manifest["engines"][engine.file_name].update(change)
    (path / MANIFEST).write_text(json.dumps(manifest))
    bundle = open_bundle(path)
    message = f"manifest.json: the record of engine {engine.file_name} is damaged"
    refuse(message, read_engines, bundle)
    refuse(message, find_engine, bundle, **HERE)


def test_other_precisions_are_unknown(path):
    with pytest.raises(ValueError, match="'tensorrt_rtx' in 'int8' is unknown"):
        record(path, precision="int8")


def test_engines_that_are_no_records(path):
    manifest = open_without_check(path)
    (path / MANIFEST).write_text(json.dumps({**manifest, "engines": {"x.engine": 1}}))
    refuse("record of engine x.engine is damaged", read_engines, open_bundle(path))
    (path / MANIFEST).write_text(json.dumps({**manifest, "engines": ["x"]}))
    refuse(r"manifest.json is damaged \(engines must be an object", open_bundle, path)


def test_what_others_added_meanwhile_is_kept(path):
    first, second = open_bundle(path), open_bundle(path)
    write_calibration(first, "exact", first.calibrations["fast"])
    one = write_engine(first, record(path), DATA)
    two = write_engine(second, record(path, gpu="NVIDIA L4"), b"another")
    write_calibration(second, "third", second.calibrations["fast"])
    again = open_bundle(path)
    assert list(again.calibrations) == ["fast", "exact", "third"]
    assert read_engines(again) == (one, two)
    assert read_engine(again, one) == DATA
    assert read_engine(again, two) == b"another"


def test_a_newer_engine_replaces_one_of_its_name(path):
    write_engine(open_bundle(path), record(path), DATA)
    newer = write_engine(open_bundle(path), record(path, slots=(1, 2)), b"newer")
    bundle = open_bundle(path)
    assert read_engines(bundle) == (newer,)
    assert read_engine(bundle, newer) == b"newer"


@pytest.mark.parametrize("network", [NETWORK, NETWORK_FP16])
def test_a_network_that_was_replaced_meanwhile(path, network):
    bundle, engine = open_bundle(path), record(path)
    (path / network).write_bytes(b"another")
    files = {**bundle.manifest.files, network: sha256(path / network)}
    write_manifest(path, dataclasses.replace(bundle.manifest, files=files))
    before = contents(path)
    refuse("got another network meanwhile|is not one of", write_engine, bundle, engine, DATA)
    assert contents(path) == before


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_write_leaves_the_bundle_as_it_was(path, monkeypatch, existing, failing):
    """The first rename is the engine's, the second the manifest's."""
    if existing:
        write_engine(open_bundle(path), record(path), DATA)
    bundle, before, calls = open_bundle(path), contents(path), []

    def once(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr("anofpdm.runtime.util.files.os.replace", once)
    newer = record(path, slots=(2,))
    message = (
        rf"an engine cannot be added to {path} \(.*No space left on device\): copy the bundle to a "
        r"folder that can be written to, and give the copy as the bundle \(--bundle\)"
    )
    refuse(message, write_engine, bundle, newer, b"newer", error=OutputError)
    monkeypatch.undo()
    assert len(calls) == failing
    assert contents(path) == before
    assert (path / ENGINES).exists() == existing
    assert open_bundle(path) == bundle


@pytest.mark.parametrize("locked", ["", ENGINES])
def test_a_read_only_bundle(path, monkeypatch, locked):
    """As root, nothing is read-only: the question is answered instead."""
    (path / ENGINES).mkdir()
    bundle, before, access = open_bundle(path), contents(path), os.access
    folder = path / locked if locked else path
    monkeypatch.setattr(os, "access", lambda where, mode: where != folder and access(where, mode))
    message = rf"cannot be added to {path} \({folder} is read-only\): copy the bundle .*--bundle"
    refuse(message, check_engine_folder, bundle, error=OutputError)
    refuse(message, write_engine, bundle, record(path), DATA, error=OutputError)
    assert contents(path) == before


def test_a_file_where_the_folder_should_be(path):
    (path / ENGINES).write_text("x")
    bundle, message = open_bundle(path), f"{path / ENGINES} is not a folder: remove it"
    refuse(message, check_engine_folder, bundle, error=OutputError)
    refuse(message, write_engine, bundle, record(path), DATA, error=OutputError)
    assert (path / ENGINES).read_text() == "x"


def test_bundles_without_engines_are_as_before(path):
    manifest = open_without_check(path)
    del manifest["engines"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert read_engines(open_bundle(path)) == ()
    assert toy_bundle().manifest.engines == {}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Writes a package that is imported for real, in place of what is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(name, code):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)

    for name in FLAVOURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield write
    for name in FLAVOURS:
        sys.modules.pop(name, None)


LACKING = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"


def test_tensorrt_comes_before_tensorrt_rtx(packages):
    packages("tensorrt", "__version__ = '11.4.0.106'")
    packages("tensorrt_rtx", "__version__ = '1.7.1.116'")
    assert flavour_of(load_tensorrt()) == "tensorrt"
    assert flavour_of(load_tensorrt("tensorrt_rtx")) == "tensorrt_rtx"


@pytest.mark.parametrize(
    "code",
    [
        LACKING,
        "raise OSError('libnvinfer.so.11')",
        "raise RuntimeError('x')",
        "__version__ = '10.9.0.34'",
        "__version__ = '9.99'",
        "",
    ],
)
def test_tensorrt_that_cannot_be_used_is_passed_over(packages, code):
    packages("tensorrt", code)
    packages("tensorrt_rtx", "__version__ = '1.7.1.116'")
    assert flavour_of(load_tensorrt()) == "tensorrt_rtx"


@pytest.mark.parametrize("version", ["10.12.0.36", "10.13", "11.0.0", "11.4.0.106"])
def test_versions_that_will_do(packages, version):
    packages("tensorrt", f"__version__ = {version!r}")
    assert load_tensorrt("tensorrt").__version__ == version


def test_bindings_without_libraries(packages):
    packages("tensorrt", LACKING)
    message = (
        r"^tensorrt cannot be imported \(libnvinfer.so.11: cannot open shared object file\): run "
        r"pip install 'anofpdm\[gpu\]'$"
    )
    refuse(message, load_tensorrt, "tensorrt", error=MissingExtraError)


def test_why_each_cannot_be_used(packages):
    packages("tensorrt", "__version__ = '10.9.0.34'")
    packages("tensorrt_rtx", "raise OSError('two\\nlines')")
    message = (
        r"^tensorrt 10.9.0.34 is older than 10.12, tensorrt_rtx cannot be imported \(two lines\): "
        r"run pip install 'anofpdm\[gpu\]' or 'anofpdm\[rtx\]'$"
    )
    refuse(message, load_tensorrt, error=MissingExtraError)


def test_old_and_nameless(packages):
    packages("tensorrt", "")
    packages("tensorrt_rtx", "__version__ = '1.2.0'\n")
    message = (
        "tensorrt of unknown version is older than 10.12, tensorrt_rtx 1.2.0 is older than 1.7"
    )
    refuse(message, load_tensorrt, error=MissingExtraError)
    message = "TensorRT 'cuda' is unknown: choose one of tensorrt, tensorrt_rtx"
    refuse(message, load_tensorrt, "cuda", error=OptionsError)
