"""The house: which room may import which, and what lands where."""

import ast
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

# Which room may import which. calibrate reads the labelled slices that train prepares, and adds its
# calibration to the bundle that export has made.
ROOMS = {
    "runtime": {"runtime"},
    "calibrate": {"runtime", "calibrate", "train.dataset", "export.bundle_update"},
    "train": {"runtime", "train"},
    "export": {"runtime", "train", "export"},
}
# The same inside runtime/: packages and modules, from the ground floor up.
RUNTIME = {
    "errors": set(),
    "method": set(),
    "util": {"errors"},
    "refine": {"method"},
    "volume": {"errors", "method", "util"},
    "bundle": {"errors", "method", "refine", "util", "volume"},
    "backends": {"errors", "bundle", "method", "util"},
    "results": {"bundle", "volume"},
    "pipeline": {"backends", "bundle", "method", "refine", "results"},
    "streaming": {"errors", "bundle", "method", "pipeline", "results", "volume"},
    "segmenter": {"errors", "backends", "bundle", "method", "pipeline", "refine", "results",
                  "streaming", "volume"},
    "dicom": {"errors", "util"},
    "report": {"errors", "bundle", "results", "util", "volume"},
    "cli": {"errors", "backends", "bundle", "dicom", "report", "results", "segmenter", "util",
            "volume"},
}  # fmt: skip


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


@pytest.mark.parametrize("room", ROOMS)
def test_imports_only_go_down(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] not in ROOMS, f"{path} imports {name}: write anofpdm.{name}"
            if parts[0] == "anofpdm" and len(parts) > 1 and parts[1] != "__version__":
                allowed = {parts[1], ".".join(parts[1:3])} & ROOMS[room]
                assert allowed, f"{path} imports {name}"
            if room in ("runtime", "calibrate") or path.name in ("dataset.py", "bundle_update.py"):
                assert parts[0] not in ("torch", "onnx"), f"{path} imports {name}"
            # It reports usage unless load_onnxruntime() imports it.
            assert parts[0] != "onnxruntime", f"{path} imports {name}"


def test_inside_the_runtime_imports_only_go_down():
    folder = ROOT / "runtime"
    entries = {path.name.removesuffix(".py") for path in folder.iterdir()}
    assert entries - {"__init__", "__pycache__", "default.anofpdm"} == set(RUNTIME)
    below = set()
    for entry, allowed in RUNTIME.items():
        assert allowed <= below, f"{entry} may import what stands above it"
        below.add(entry)
        package = folder / entry
        for path in sorted(package.rglob("*.py")) or [package.with_suffix(".py")]:
            for name in imported(path):
                parts = name.split(".")
                if parts[:2] == ["anofpdm", "runtime"] and len(parts) > 2:
                    assert parts[2] in {entry, *allowed}, f"{path} imports {name}"


def test_no_module_imports_itself_in_a_circle():
    modules = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(("anofpdm", *parts)).removesuffix(".__init__")] = path
    needs = {
        name: {other for other in imported(path) if other in modules and other != name}
        for name, path in modules.items()
    }
    while free := [name for name, others in needs.items() if not others]:
        needs = {name: others.difference(free) for name, others in needs.items() if others}
    assert not needs


def test_only_entry_points_import_the_command_line():
    entry_points = {"runtime/cli", "calibrate/cli.py", "calibrate/evaluate_cli.py", "train/cli.py",
                    "export/cli.py"}  # fmt: skip
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(tuple(entry_points)):
                assert not any(name.startswith("anofpdm.runtime.cli") for name in imported(path))


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
    for name in ("py.typed", "runtime/method/process.py", "train/unet.py", "calibrate/choose.py",
                 "export/parity.py", "runtime/backends/cuda/kernels.cu",
                 "runtime/default.anofpdm/unet.onnx",
                 "runtime/default.anofpdm/unet_fp16.onnx", "export/tensorrt/build.py",
                 "runtime/dicom/series.py", "runtime/default.anofpdm/manifest.json",
                 "runtime/report/page.css", "runtime/report/page.py"):  # fmt: skip
        assert f"anofpdm/{name}" in names


def test_importing_the_runtime_takes_hardly_longer_than_importing_its_libraries():
    """At most 1.6 times the time of a core of NumPy and nibabel, which it needs in any case, and 60
    MB: SciPy and the engine wait for their use. The best of five, in turn: others run as well."""
    script = (
        "import sys, time, importlib\n"
        "sys.modules['pydicom'] = None\n"  # which nibabel imports where it is installed
        "importlib.import_module(sys.argv[1])\n"
        "seconds = time.process_time()\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(seconds, int(status['VmHWM'].split()[0]) / 1024)"
    )

    def cost(module):
        done = subprocess.run([sys.executable, "-c", script, module], capture_output=True,
                              text=True, check=True)  # fmt: skip
        return map(float, done.stdout.split())

    ours, libraries = [], []
    for _ in range(5):
        seconds, mib = cost("anofpdm.runtime.segmenter")
        ours.append(seconds)
        assert mib * 2**20 < 60e6
        libraries.append(next(cost("nibabel")))
    assert min(ours) < 1.6 * min(libraries)
