"""Breaks thirty lines, one at a time, and says which ones no test notices.

Run it as ``python tests/mutations.py``.

Each is a sign, an equation, a hash check or an atomic write. Only the tests beside each are run, so
one that stays green here may still be noticed by another file. Needs a clean work tree, since it
edits the sources and puts them back.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# File, line, broken line, tests that have to fail.
METHOD, LOOP = "tests/runtime/method", "tests/runtime/backends/cpu/test_numpy_loop.py"
STEP, MAPS = "runtime/method/step.py", "runtime/method/anomaly_map.py"
ACCUMULATOR, DECISION = "runtime/method/accumulator.py", "runtime/method/decision.py"
THRESHOLD, PLANE = "runtime/method/threshold.py", "runtime/refine/through_plane.py"
MUTATIONS = [
    (STEP, "np.float32(1 + w) * self.eps_healthy", "np.float32(1 - w) * self.eps_healthy", METHOD),
    (STEP, "return self._clean(self.eps_null)", "return self._clean(self.eps_healthy)", METHOD),
    (STEP, "(self.x_t - noise)", "(self.x_t + noise)", METHOD),
    (STEP, "+ np.float32(math.sqrt(1 - abar)) * noise", "+ np.float32(math.sqrt(abar)) * noise",
     METHOD),
    (STEP, "clean = np.float32(math.sqrt(abar_next)) * UGP",
     "clean = np.float32(math.sqrt(abar_t)) * UGP", METHOD),
    (ACCUMULATOR, "M = mean_square(HGP - UGP)", "M = mean_square(HGP - x0)", METHOD),
    (ACCUMULATOR, "mean_square(UGP - x0))", "mean_square(HGP - x0))", METHOD),
    (ACCUMULATOR, "self.t_e[higher] = step.t", "self.t_e[higher] = step.t + 1", METHOD),
    (MAPS, "np.square(HGP - x0)", "np.square(UGP - x0)", METHOD),
    (MAPS, "/ np.float32(self._count)", "/ np.float32(self._count + 1)", METHOD),
    (THRESHOLD, "np.linspace(b, a, 101)", "np.linspace(a, b, 101)", METHOD),
    (THRESHOLD, "np.rint(np.round(share, 2) * 100)", "np.floor(np.round(share, 2) * 100)", METHOD),
    (DECISION, "(ab2 - a2 - b2)", "(a2 + b2 - ab2)", METHOD),
    (DECISION, "dot / np.where", "-dot / np.where", METHOD),
    ("runtime/method/early_stop.py", "(M < self.rule.drop * best)", "(M > self.rule.drop * best)",
     METHOD),
    ("runtime/method/noise.py", "counter=[0, 0, 0, t]", "counter=[0, 0, 0, 0]", METHOD),
    ("runtime/method/schedule.py", "np.cumprod(1.0 - betas)", "np.cumprod(1.0 + betas)", METHOD),
    ("runtime/backends/cpu/numpy_loop.py", "abar[self._t - 1]", "abar[self._t]", LOOP),
    ("runtime/backends/cpu/onnxruntime.py", '"t": t - 1', '"t": t', "tests/export/test_export.py"),
    ("runtime/backends/cuda/kernels.cu", "- loop->w * eps_null", "+ loop->w * eps_null",
     "tests/runtime/backends/cuda/test_loop.py"),
    ("runtime/refine/masks.py", ".sum() > smallest", ".sum() >= smallest", "tests/runtime/refine"),
    (PLANE, "np.square(2 * distance_mm", "np.square(distance_mm", "tests/runtime/refine"),
    (PLANE, "return planes[:, ::-1] if self.flips(item) else planes", "return planes",
     "tests/runtime/refine"),
    ("runtime/refine/guided_filter.py", "- mean_I * mean_p", "+ mean_I * mean_p",
     "tests/runtime/refine/test_guided_filter.py"),
    ("runtime/segmenter.py", "if every_slice or r.unhealthy", "if True",
     "tests/runtime/test_segmenter.py"),
    ("runtime/volume/nifti.py", "image.header[name] = source.header[name]", "pass",
     "tests/runtime/volume/test_nifti.py"),
    ("runtime/bundle/bundle.py", "if sha256(path / name) != expected:", "if False:",
     "tests/runtime/bundle/test_bundle.py"),
    ("runtime/bundle/engines.py", "hexdigest() != engine.sha256", "hexdigest() == ''",
     "tests/runtime/bundle/test_engines.py"),
    ("runtime/util/files.py", "os.replace(temporary[key], path)",
     "temporary[key].rename(path.parent / 'x')",
     "tests/runtime/util"),
    ("runtime/dicom/stack.py", 'np.argsort(along, kind="stable")',
     'np.argsort(-along, kind="stable")',
     "tests/runtime/dicom/test_series.py"),
]  # fmt: skip


def noticed(file: str, line: str, broken: str, tests: str) -> bool:
    """Whether the tests fail with the line broken."""
    path = ROOT / file
    source = path.read_text(encoding="utf-8")
    if line not in source:
        raise SystemExit(f"{file} has no {line!r} any more")
    try:
        path.write_text(source.replace(line, broken, 1), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-xqm", "not slow", tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode == 1
    finally:
        path.write_text(source, encoding="utf-8")


if __name__ == "__main__":
    survivors = 0
    for file, line, broken, tests in MUTATIONS:
        red = noticed(file, line, broken, tests)
        survivors += not red
        print(f"{'noticed' if red else 'NOT NOTICED'}: {file}: {broken}", flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} noticed")
    sys.exit(survivors > 0)
