"""The house: which room may import which, and what lands where."""

import ast
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

BELOW = {
    "runtime": {"runtime"},
    "calibrate": {"runtime", "calibrate"},
    "train": {"runtime", "train"},
    "export": {"runtime", "train", "export"},
}


def imported(path):
    """Absolute names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Level 1 is the folder itself, level 2 the one above it.
            inside = ("anofpdm", *path.relative_to(ROOT).parent.parts)
            above = inside[: len(inside) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module.rstrip('.')}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", BELOW)
def test_imports_only_go_down(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] not in BELOW, f"{path} imports {name}: write anofpdm.{name}"
            if parts[0] == "anofpdm" and len(parts) > 1 and parts[1] != "__version__":
                assert parts[1] in BELOW[room], f"{path} imports {name}"
            if room in ("runtime", "calibrate"):
                assert parts[0] not in ("torch", "onnx"), f"{path} imports {name}"
            # It reports usage unless load_onnxruntime() imports it.
            assert parts[0] != "onnxruntime", f"{path} imports {name}"


def test_importing_the_runtime_loads_nothing_heavy():
    script = (
        "import sys, importlib, pkgutil\n"
        # nibabel imports pydicom where it is installed; here, nothing can.
        "sys.modules.update(pydicom=None, highdicom=None)\n"
        "import anofpdm.runtime as r\n"
        "for m in pkgutil.walk_packages(r.__path__, 'anofpdm.runtime.'):\n"
        "    importlib.import_module(m.name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "anofpdm.runtime.segmenter" in loaded
    assert "anofpdm.runtime.backends.cuda.device" in loaded
    assert "anofpdm.runtime.dicom.series" in loaded
    for name in ("torch", "onnx", "onnxruntime", "tensorrt", "pycuda", "cuda", "matplotlib"):
        assert name not in loaded


@pytest.mark.slow
def test_wheel_holds_the_package_and_no_plain_rooms(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"anofpdm"}
    for name in ("py.typed", "runtime/forward.py", "train/unet.py", "calibrate/choose.py",
                 "export/parity.py", "runtime/gpu/kernels.cu", "runtime/default.anofpdm/unet.onnx",
                 "runtime/default.anofpdm/unet_fp16.onnx", "export/engine.py",
                 "runtime/dicom/series.py", "runtime/default.anofpdm/manifest.json",
                 "runtime/report/page.css", "runtime/report/page.py"):  # fmt: skip
        assert f"anofpdm/{name}" in names


@pytest.mark.parametrize("what", ["anofpdm.runtime", "anofpdm.runtime.segmenter"])
def test_importing_is_quick_and_small(what):
    """Less than 0.3 s of a core and 60 MB; the best of five, for other programs run as well."""
    script = (
        "import sys, time, importlib\n"
        "sys.modules['pydicom'] = None\n"  # which nibabel imports where it is installed
        f"importlib.import_module({what!r})\n"
        "seconds = time.process_time()\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(seconds, int(status['VmHWM'].split()[0]) / 1024)"
    )
    seen = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              check=True)  # fmt: skip
        seen.append(tuple(map(float, done.stdout.split())))
    seconds, mib = (min(values) for values in zip(*seen, strict=True))
    assert seconds < 0.3
    assert mib * 2**20 < 60e6
