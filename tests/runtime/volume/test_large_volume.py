"""Volumes of a hundred million voxels fit into two gibibytes, the whole process counted."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from support import ROOT

SHAPE, LEVELS = (512, 512, 400), 6
# The network is a stand-in: its memory is added.
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support import bundle, toy_network
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image, save_image

def peak():
    # Not getrusage: that of a child begins with what its parent had.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 1024

path = Path(sys.argv[1])
before = peak()
segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(load_image(path))
save_image(segmentation.image, path.with_name("mask.nii.gz"))
print(json.dumps([before, peak(), len(segmentation.slices), list(segmentation.mask.shape)]))
"""


def write_head(path, kind):
    """An ellipse of tissue with a bright disc on the middle levels, air above and below; written
    slice by slice, as whole numbers."""
    X, Y, Z = SHAPE
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(kind)
    header.set_sform(np.diag([-240 / X, 240 / Y, 200 / Z, 1.0]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    x, y = np.meshgrid(np.linspace(-1, 1, X), np.linspace(-1, 1, Y), indexing="ij")
    inside, disc = (x / 0.75) ** 2 + (y / 0.9) ** 2 < 1, np.hypot(x - 0.3, y + 0.2) < 0.15
    noise = np.random.Generator(np.random.Philox(0)).normal(0, 8, (X, Y))
    air = np.zeros((X, Y), kind).tobytes()
    with nib.openers.ImageOpener(str(path), "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for z in range(Z):
            if not (Z - LEVELS) // 2 <= z < (Z + LEVELS) // 2:
                file.write(air)
                continue
            plane = np.where(inside, 300 + 90 * disc + np.roll(noise, 7 * z), 0)
            file.write(np.rint(plane).astype(kind).tobytes("F"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "suffix"), [("int16", ".nii.gz"), ("float32", ".nii")])
def test_a_large_volume_takes_less_than_two_gibibytes(tmp_path, kind, suffix):
    path = tmp_path / f"head{suffix}"
    write_head(path, np.dtype(kind))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, peak, slices, shape = json.loads(done.stdout)
    assert (slices, shape) == (LEVELS, list(SHAPE))
    # float32 voxels once, and a second time while quantiles are found: 800 MiB.
    assert before < 300
    assert peak < 1150
