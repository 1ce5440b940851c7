"""Peak memory of a contender of :mod:`side_by_side` with 100 slices, in a process of its own.

The reference implementation's loop runs to its end, so that what it stores is there, but the
network is asked at the first timestep only (which is where a batch of 100 takes its memory), and a
function that costs nothing after that. Ours runs as it is for some thirty timesteps: what it keeps
does not grow with them (``memory.py``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

SLICES, STEPS = 100, 30
THEIRS = "reference implementation"


def peak_mib(name: str, threads: int) -> float:
    """The largest resident set of a process that runs this contender."""
    arguments = [sys.executable, __file__, name, str(threads)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measure(name: str, threads: int) -> float:
    from anofpdm.export.phantom import phantom_slices
    from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle

    manifest = open_bundle(DEFAULT).manifest
    x0 = phantom_slices(SLICES, len(manifest.modalities), manifest.grid.size)
    if name == THEIRS:
        _theirs(x0, threads)
    else:
        _ours(name, x0, threads)
    # Not getrusage: a child's counts begin with its parent's.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in status if row.startswith("VmHWM"))


def _ours(name: str, x0: np.ndarray, threads: int) -> None:
    from anofpdm.runtime.backends.base import Recipe
    from anofpdm.runtime.bundle.options import Options
    from anofpdm.runtime.method.process import Slice
    from anofpdm.runtime.segmenter import Segmenter

    preset, _, w = name.partition(", w = ")
    setup = Options(preset=preset, w=float(w) if w else None)
    with Segmenter.load(options=options, device="cpu", threads=threads) as segmenter:
        process, w_used = segmenter.plan.process, segmenter.plan.calibration.w
        if len(process.timesteps) > STEPS:
            process = replace(process, L=STEPS)
        recipe = Recipe(process, w_used, segmenter.bundle.manifest.scored_channels)
        for _ in segmenter.backend.run(recipe, (Slice(i, x) for i, x in enumerate(x0))):
            pass


def _theirs(x0: np.ndarray, threads: int) -> None:
    import torch
    from contenders import CHECKPOINT, REFERENCE_L
    from counterpart import Counted, forward_process, select

    from anofpdm.train.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    unet = load_checkpoint(CHECKPOINT).network().eval()

    def network(x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return unet(x_t, t, label) if t[0] == 0 else 0.9 * x_t

    clean, noise = torch.from_numpy(x0), torch.randn(x0.shape)
    stored = forward_process(Counted(network), clean, noise, REFERENCE_L, 2.0)
    select(stored, clean, np.ones(x0.shape[1]), 0.9, 0.98)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
