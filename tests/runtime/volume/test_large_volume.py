"""Volumes of a hundred million voxels fit into two gibibytes, the whole process counted."""

import json
import subprocess
import sys

import pytest
from support import ROOT

# The network is a stand-in: what it takes is added.
SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = ["tests", "benchmarks"]
import numpy as np
from large_volume import write_head
from support import bundle, toy_network
from anofpdm.runtime.backends.base import NumpyBackend
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image, save_image

def peak():
    # Not getrusage: that of a child begins with what its parent had.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 1024

path = Path(sys.argv[1])
write_head(path, np.dtype(sys.argv[2]), 6)
before = peak()
found = Segmenter(bundle(), NumpyBackend(toy_network)).segment(load_image(path))
save_image(found.image, path.with_name("mask.nii.gz"))
print(json.dumps([before, peak(), len(found.slices), list(found.mask.shape)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "suffix"), [("int16", ".nii.gz"), ("float32", ".nii")])
def test_a_large_volume_takes_less_than_two_gibibytes(tmp_path, kind, suffix):
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / f"head{suffix}"), kind]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    before, peak, slices, shape = json.loads(done.stdout)
    assert (slices, shape) == (6, [512, 512, 400])
    # float32 voxels once, and a second time while quantiles are found: 800 MiB.
    assert before < 300
    assert peak < 1150
