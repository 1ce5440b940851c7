"""Peak memory against L and the number of volumes: ``python benchmarks/memory.py``.

Every row is a process of its own on the embedded default model; "peak" is its largest resident set,
"above" what of it came after loading the model. Volumes are made as they are needed, which is how
``segment_many`` takes them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
from machine import machine, table
from processes import with_process

from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json

_ROWS = [
    ("ddim", 100, 1), ("ddim", 300, 1), ("ddim", 600, 1), ("ddpm", 600, 1), ("ddim", 100, 4),
    ("ddim", 100, 16),
]  # fmt: skip
_STRIDE, _LEVELS, _ALLOWED_MIB = 4, 8, 16


@click.command()
@click.option("--one", nargs=3, type=(str, int, int), hidden=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(one: tuple[str, int, int] | None, json_path: Path | None) -> None:
    if one:
        click.echo(json.dumps(measure(*one)))
        return
    rows = []
    for row in _ROWS:
        arguments = [sys.executable, __file__, "--one", *map(str, row)]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
    head = ["encoding", "L", "visited timesteps", f"volumes of {_LEVELS} slices", "peak MiB",
            "above MiB"]  # fmt: skip
    click.echo(table(head, [_line(row) for row in rows]))
    if json_path:
        write_json(json_path, {"machine": machine(), "stride": _STRIDE, "rows": rows})
    peaks = [row["peak_mib"] for row in rows]
    if max(peaks) - min(peaks) > _ALLOWED_MIB:
        raise click.ClickException(f"peaks differ by more than {_ALLOWED_MIB} MiB")


def _line(row: dict[str, Any]) -> list[str]:
    return [row["encoding"].upper(), str(row["L"]), str(row["steps"]), str(row["volumes"]),
            f"{row['peak_mib']:.0f}", f"{row['above_mib']:.0f}"]  # fmt: skip


def measure(encoding: str, L: int, volumes: int) -> dict[str, Any]:
    """Segment phantoms with every ``_STRIDE``-th timestep up to L."""
    bundle = with_process(open_bundle(DEFAULT), encoding, L, _STRIDE)
    segmenter = Segmenter.load(bundle)
    before = _peak_mib()
    for found in segmenter.segment_many(_phantoms(volumes)):
        steps = len(found.slices[0].M)
    return {
        "encoding": encoding,
        "L": L,
        "volumes": volumes,
        "steps": steps,
        "peak_mib": _peak_mib(),
        "above_mib": _peak_mib() - before,
    }


def _phantoms(count: int) -> Iterator[nib.Nifti1Image]:
    for seed in range(count):
        slices = phantom_slices(_LEVELS, 1, 128, seed)[:, 0]
        volume = np.ascontiguousarray(np.moveaxis(100 * (slices + 1), 0, 2))
        yield nib.Nifti1Image(volume, np.diag([1.875, 1.875, 5.0, 1.0]))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
