"""A bundle on volumes as users have them:

``python benchmarks/robustness.py COHORT --bundle BUNDLE --other FOLDER``

Patients of a split are segmented as the public API does it, as stored and after the changes of
:mod:`conditions`; each case of the other folders (``NAME/NAME_flair.nii.gz``, ``NAME_seg.nii.gz``)
by itself; and controls, inputs that the model was not made for. Dice is 3-D, of the mask that a
user gets, against the lesions on its voxels; mean over volumes with a lesion.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import PATH, machine, table
from conditions import CONDITIONS, CONTROLS, Change, Scan, levels, read_scan, thinned

from anofpdm.calibrate.metrics import dice
from anofpdm.runtime.bundle.bundle import DEFAULT
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import reports_errors, threads_option
from anofpdm.runtime.errors import CohortError, VolumeError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import writable_folder, write_json
from anofpdm.train.cohort import Case, assign_splits, read_cohort

_IMPLAUSIBLE = "unlike"  # in the note on a volume that differs from those of the calibration


@click.command()
@click.argument("cohort", type=PATH)
@click.option("--bundle", type=PATH, default=DEFAULT)
@click.option("--preset", help="One of the bundle's calibrations.  [default: the bundle's]")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option("--patients", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--slices", "most", type=click.IntRange(min=1), default=80, show_default=True,
              help="At most so many axial slices of a volume.")  # fmt: skip
@click.option("--other", "others", type=PATH, multiple=True)
@threads_option
@click.option("--json", "json_path", type=PATH)
@reports_errors
def main(cohort, bundle, preset, split, patients, most, others, threads, json_path):
    if json_path:
        writable_folder(json_path)
    segmenter = Segmenter.load(
        bundle, options=Options(preset=preset), device="cpu", threads=threads
    )
    name, modalities = segmenter.bundle.manifest.name, segmenter.bundle.manifest.modalities
    if len(modalities) != 1:
        raise CohortError(f"the bundle wants {', '.join(modalities)}: name one of one modality")
    cases = assign_splits(read_cohort(cohort, modalities), 0)
    scans = _read([case for case in cases if case.split == split][:patients], modalities[0])
    if not scans:
        raise CohortError(f"{cohort} has no patient of the {split} split with drawn lesions")
    rows = []
    for condition, changed in _rows(scans, others, modalities[0], most):
        rows.append(measure(segmenter, condition, changed))
        click.echo(" | ".join(line(rows[-1])), err=True)
    preset = segmenter.plan.preset
    click.echo(
        f"{len(scans)} patients of the {split} split, at most {most} slices of each volume; "
        f"preset {preset} of {name}\n\n{table(HEAD, [line(row) for row in rows])}"
    )
    if json_path:
        about = {"machine": machine(), "bundle": name, "preset": preset}
        settings = {"split": split, "patients": len(scans), "slices": most}
        write_json(json_path, {**about, **settings, "rows": rows})


def measure(segmenter: Segmenter, condition: str, scans: Iterable[Scan]) -> dict[str, Any]:
    """Segment scans under one condition: a row as JSON holds it. ``dice``: of each scan that has a
    lesion, 0 where it was refused; ``refused``: the messages of VolumeErrors."""
    started, scores, refused, marked_ml = time.perf_counter(), [], [], 0.0
    volumes = unhealthy = drawn = slices = implausible = 0
    for scan in scans:
        volumes += 1
        try:
            result = segmenter.segment(scan.image)
        except VolumeError as error:
            refused.append(str(error))
            if scan.lesion.any():
                scores.append(0.0)
            continue
        if scan.lesion.any():
            scores.append(dice(result.mask.astype(bool), scan.lesion))
        drawn += int(np.moveaxis(scan.lesion, scan.upward, 0).any(axis=(1, 2)).sum())
        unhealthy, slices = unhealthy + result.unhealthy_slices, slices + len(result.slices)
        marked_ml += result.volume_ml
        implausible += any(_IMPLAUSIBLE in note for note in result.notes)
    return {
        "condition": condition, "volumes": volumes,
        "dice": scores, "dice_mean": float(np.mean(scores)) if scores else None,
        "called_unhealthy": unhealthy, "drawn_unhealthy": drawn, "slices": slices,
        "marked_ml": marked_ml, "implausible": implausible, "refused": refused,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _rows(
    scans: list[Scan], others: tuple[Path, ...], modality: str, most: int
) -> Iterator[tuple[str, Iterable[Scan]]]:
    """Each row's name and scans, which are made when they are needed."""

    def changed(some: list[Scan], change: Change = lambda scan: scan) -> Iterator[Scan]:
        return (thinned(change(scan), levels(scan, most)) for scan in some)

    for name, change in CONDITIONS.items():
        yield name, changed(scans, change)
    cases = [(folder, case) for folder in others for case in read_cohort(folder, (modality,))]
    for folder, case in cases:
        yield f"{folder.name}, {case.patient}", changed(_read([case], modality))
    t1 = [case for _, case in cases if "t1" in case.volumes and modality != "t1"]
    if t1:
        yield f"control: T1 in place of {modality.upper()}", changed(_read(t1, "t1"))
    for name, change in CONTROLS.items():
        yield name, changed(scans, change)


def _read(cases: list[Case], modality: str) -> list[Scan]:
    return [read_scan(case.volumes[modality], case.mask) for case in cases if case.mask]


HEAD = ["condition", "volumes", "Dice, mean [min, max]", "slices called unhealthy (drawn, of)",
        "ml marked", "noted as out of distribution", "refused", "s"]  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    scores = row["dice"]
    spread = f" [{min(scores):.2f}, {max(scores):.2f}]" if len(scores) > 1 else ""
    return [
        row["condition"], str(row["volumes"]),
        f"{row['dice_mean']:.3f}{spread}" if scores else "no lesion",
        f"{row['called_unhealthy']} ({row['drawn_unhealthy']}, {row['slices']})",
        f"{row['marked_ml']:.1f}", str(row["implausible"]), str(len(row["refused"])),
        f"{row['seconds']:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
