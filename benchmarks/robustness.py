"""How a bundle does on what users feed it, in whole volumes:

``python benchmarks/robustness.py COHORT --bundle BUNDLE --other FOLDER``

Each patient of one split of a cohort is segmented as the public API does it, as stored and after
what happens to scans elsewhere (:mod:`conditions`); each case of the other folders
(``NAME/NAME_flair.nii.gz``, ``NAME_seg.nii.gz``) on its own; and controls, inputs that are none of
the model's business. Dice is 3-D, of the mask that a user would get, against the drawn lesions
brought the same way; mean over the volumes that have a lesion. Of a volume with many slices every
k-th is used, the same ones after resampling.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from conditions import CONDITIONS, CONTROLS, Change, Scan, levels, read_scan, thinned
from machine import machine, table

from anofpdm.calibrate.metrics import dice
from anofpdm.runtime.bundle.bundle import DEFAULT
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.errors import CohortError, VolumeError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import writable_folder, write_json
from anofpdm.train.cohort import Case, assign_splits, read_cohort

_UNLIKE = "unlike"  # in the note on a volume that differs from those of the calibration


@click.command()
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--preset", help="One of the bundle's calibrations.  [default: the bundle's]")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option("--patients", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--slices", "most", type=click.IntRange(min=1), default=80, show_default=True,
              help="At most so many axial slices of a volume.")  # fmt: skip
@click.option("--other", "others", type=click.Path(path_type=Path), multiple=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    cohort: Path,
    bundle: Path,
    preset: str | None,
    split: str,
    patients: int,
    most: int,
    others: tuple[Path, ...],
    threads: int | None,
    json_path: Path | None,
) -> None:
    if json_path:
        writable_folder(json_path)
    segmenter = Segmenter.load(bundle, options=Options(preset=preset), device="cpu", threads=threads)
    modalities = segmenter.bundle.manifest.modalities
    if len(modalities) != 1:
        raise CohortError(f"the bundle wants {', '.join(modalities)}: name one of one modality")
    cases = assign_splits(read_cohort(cohort, modalities), 0)
    scans = _read([case for case in cases if case.split == split][:patients], modalities[0])
    if not scans:
        raise CohortError(f"{cohort} has no patient of the {split} split with drawn lesions")
    rows = []
    for condition, wanted in _everything(scans, others, modalities[0], most):
        rows.append(measured(segmenter, condition, wanted))
        click.echo(" | ".join(line(rows[-1])), err=True)
    caption = (
        f"{len(scans)} patients of the {split} split, at most {most} slices of each volume; "
        f"preset {segmenter.plan.preset} of {segmenter.bundle.manifest.name}"
    )
    click.echo(f"{caption}\n\n{table(HEAD, [line(row) for row in rows])}")
    if json_path:
        about = {"bundle": segmenter.bundle.manifest.name, "preset": segmenter.plan.preset}
        settings = {"split": split, "patients": len(scans), "slices": most}
        write_json(json_path, {"machine": machine(), **about, **settings, "rows": rows})


def measured(segmenter: Segmenter, condition: str, scans: Iterable[Scan]) -> dict[str, Any]:
    """Segment scans under one condition.

    Returns
    -------
    what JSON holds of them; ``dice``: of each scan that has a lesion, 0 where it was refused;
    ``refused``: why, where the API raised a VolumeError
    """
    started, volumes = time.perf_counter(), 0
    scores, refused, marked_ml = [], [], 0.0
    called = drawn = shown = unlike = 0
    for scan in scans:
        volumes += 1
        try:
            found = segmenter.segment(scan.image)
        except VolumeError as error:
            refused.append(str(error))
            if scan.lesion.any():
                scores.append(0.0)
            continue
        if scan.lesion.any():
            scores.append(dice(found.mask.astype(bool), scan.lesion))
        levels = np.moveaxis(scan.lesion, scan.upward, 0).any(axis=(1, 2))
        called, shown = called + found.unhealthy_slices, shown + len(found.slices)
        drawn += int(levels.sum())
        marked_ml += found.volume_ml
        unlike += any(_UNLIKE in note for note in found.notes)
    return {
        "condition": condition,
        "volumes": volumes,
        "dice": scores,
        "dice_mean": float(np.mean(scores)) if scores else None,
        "called_unhealthy": called,
        "drawn_unhealthy": drawn,
        "slices": shown,
        "marked_ml": marked_ml,
        "unlike": unlike,
        "refused": refused,
        "seconds": time.perf_counter() - started,
    }


def _everything(
    scans: list[Scan], others: tuple[Path, ...], modality: str, most: int
) -> Iterator[tuple[str, Iterable[Scan]]]:
    """Each row's name and scans; these are made when they are asked for."""

    def changed(some: list[Scan], change: Change = lambda scan: scan) -> Iterator[Scan]:
        return (thinned(change(scan), levels(scan, most)) for scan in some)

    for name, change in CONDITIONS.items():
        yield name, changed(scans, change)
    elsewhere = [(folder, read_cohort(folder, (modality,))) for folder in others]
    for folder, cases in elsewhere:
        for case in cases:
            yield f"{folder.name}, {case.patient}", changed(_read([case], modality))
    if modality != "t1":
        t1 = [case for _, cases in elsewhere for case in cases if "t1" in case.volumes]
        if t1:
            yield f"control: T1 in place of {modality.upper()}", changed(_read(t1, "t1"))
    for name, change in CONTROLS.items():
        yield name, changed(scans, change)


def _read(cases: list[Case], modality: str) -> list[Scan]:
    return [read_scan(case.volumes[modality], case.mask) for case in cases if case.mask]


HEAD = ["condition", "volumes", "Dice, mean [min, max]", "slices found unhealthy (drawn, of)",
        "ml marked", "noted as unlike", "refused", "s"]  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    scores = row["dice"]
    spread = f" [{min(scores):.2f}, {max(scores):.2f}]" if len(scores) > 1 else ""
    return [
        row["condition"],
        str(row["volumes"]),
        f"{row['dice_mean']:.3f}{spread}" if scores else "no lesion",
        f"{row['called_unhealthy']} ({row['drawn_unhealthy']}, {row['slices']})",
        f"{row['marked_ml']:.1f}",
        str(row["unlike"]),
        str(len(row["refused"])),
        f"{row['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
