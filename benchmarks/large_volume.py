"""Peak memory of a large volume: ``python benchmarks/large_volume.py``.

A head of 512 x 512 x 400 voxels, as NIfTI, compressed or not; each is segmented by a process of its
own on the embedded default model, whose largest resident set is the peak. "before" is what the
process had taken when the model was loaded.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
from machine import machine, table

from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.volume.nifti import load_image, save_image

_SHAPE = (512, 512, 400)
_ALLOWED_MIB = 2048
_FILES = [("int16", ".nii.gz"), ("int16", ".nii"), ("float32", ".nii.gz"), ("float32", ".nii")]


@click.command()
@click.option("--one", nargs=2, type=str, hidden=True)
@click.option("--levels", default=4, show_default=True, help="That show a head; 400 take long.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(one: tuple[str, str] | None, levels: int, json_path: Path | None) -> None:
    if one:
        click.echo(json.dumps(measure(Path(one[0]), Path(one[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, suffix in _FILES:
            path = Path(folder, f"head{suffix}")
            write_head(path, np.dtype(kind), levels)
            arguments = [sys.executable, __file__, "--one", str(path), str(path.with_name("m.nii"))]
            done = subprocess.run(arguments, check=True, capture_output=True, text=True)
            rows.append({"voxels": kind, "file": suffix, **json.loads(done.stdout)})
    head = ["voxels", "file", "slices", "peak MiB", "before MiB", "first slice s", "in all s"]
    click.echo(table(head, [_line(row) for row in rows]))
    if json_path:
        write_json(json_path, {"machine": machine(), "shape": _SHAPE, "rows": rows})
    if max(row["peak_mib"] for row in rows) > _ALLOWED_MIB:
        raise click.ClickException(f"a peak is above {_ALLOWED_MIB} MiB")


def _line(row: dict[str, Any]) -> list[str]:
    return [row["voxels"], row["file"], str(row["slices"]), f"{row['peak_mib']:.0f}",
            f"{row['before_mib']:.0f}", f"{row['to_first_slice_s']:.1f}",
            f"{row['seconds']:.1f}"]  # fmt: skip


def write_head(
    path: Path, kind: np.dtype[Any], levels: int, shape: tuple[int, int, int] = _SHAPE
) -> None:
    """An ellipse of tissue with a bright disc on the middle ``levels`` slices, air above and below;
    made and written slice by slice, as whole numbers."""
    X, Y, Z = shape
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
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
            if not (Z - levels) // 2 <= z < (Z + levels) // 2:
                file.write(air)
                continue
            plane = np.where(inside, 300 + 90 * disc + np.roll(noise, 7 * z), 0)
            file.write(np.rint(plane).astype(kind).tobytes("F"))


def measure(path: Path, output: Path) -> dict[str, Any]:
    """Segment a file with the fastest preset, and write the mask."""
    segmenter = Segmenter.load(options=Options(preset="fastest"), device="cpu")
    before, started, read = _peak_mib(), time.perf_counter(), []
    found = segmenter.segment(
        load_image(path), progress=lambda done, total: read.append(time.perf_counter())
    )
    save_image(found.image, output)
    return {
        "slices": len(found.slices),
        "peak_mib": _peak_mib(),
        "before_mib": before,
        "to_first_slice_s": read[0] - started,
        "seconds": time.perf_counter() - started,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
