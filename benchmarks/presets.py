"""What each calibration of a bundle gives and costs, on labelled slices:

``python benchmarks/presets.py SLICES --bundle BUNDLE``

Dice and AUPRC are those of unhealthy slices, each segmented whatever the decision. Seconds a slice
are medians of interleaved repetitions on the same few slices.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import machine, table

from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.labelled import fitting
from anofpdm.runtime.backends.base import Backend
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle, write_card_section
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import SliceSet, open_sliceset

_TIMED_SLICES = 4


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--preset", "names", multiple=True, help="Only these.  [default: all]")
@click.option("--anomaly-map", "maps", multiple=True, help="Each of these.  [default: calibrated]")
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=1, show_default=True, help="Compare every k-th slice only.")
@click.option("--repeat", default=3, show_default=True, help="Timings of each, or 0.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@click.option("--add-to-card", is_flag=True, help="Put the table into the bundle's model card.")
@reports_errors
def main(
    slices: Path,
    bundle: Path,
    names: tuple[str, ...],
    maps: tuple[str, ...],
    split: str,
    every: int,
    repeat: int,
    threads: int | None,
    json_path: Path | None,
    add_to_card: bool,
) -> None:
    opened = open_bundle(bundle)
    labelled = fitting(open_sliceset(slices), opened).split(split)
    setups = [
        Options(preset=name, anomaly_map=kind)
        for name in names or opened.calibrations
        for kind in maps or (None,)
    ]
    segmenters = []
    backends: dict[str, Backend] = {}
    for setup in setups:
        precision = resolve(opened, setup).calibration.conditions.precision
        if precision not in backends:
            backends[precision] = open_device("cpu", opened, threads=threads, precision=precision)
        segmenters.append(Segmenter(opened, backends[precision], options=options))
    seconds = _seconds(segmenters, labelled, repeat)
    rows = []
    for segmenter, times in zip(segmenters, seconds, strict=True):
        rows.append(_row(segmenter, labelled, every, times))
        click.echo(" | ".join(_line(rows[-1])), err=True)
    labelled = labelled.take(range(0, len(labelled), every))
    patients = len(set(labelled.patients))
    sick = int(labelled.unhealthy.sum())
    caption = (
        f"{len(labelled)} slices of {patients} patients of the {split} split, {sick} unhealthy"
    )
    text = f"{caption}\n\n{table(_HEAD, [_line(row) for row in rows])}\n"
    click.echo(text)
    if json_path:
        about = {"bundle": opened.manifest.name, "split": split, "every": every, "threads": threads}
        write_json(json_path, {"machine": machine(), **about, "rows": rows})
    if add_to_card:
        write_card_section(opened, "## Presets", f"\n\n{text}")


def _seconds(segmenters: list[Segmenter], labelled: SliceSet, repeat: int) -> list[list[float]]:
    """Seconds a slice, ``repeat`` times, one set-up after the other in every round."""
    few = [labelled.x0(i) for i in range(0, len(labelled), len(labelled) // _TIMED_SLICES + 1)]
    times: list[list[float]] = [[] for _ in segmenters]
    for _ in range(repeat):
        for found, segmenter in zip(times, segmenters, strict=True):
            started = time.perf_counter()
            list(segmenter.segment_slices(Slice(i, x0) for i, x0 in enumerate(few)))
            found.append((time.perf_counter() - started) / len(few))
    return times


def _row(
    segmenter: Segmenter, labelled: SliceSet, every: int, times: list[float]
) -> dict[str, Any]:
    used = segmenter.plan
    found = evaluate(segmenter, labelled, ProgressLine(used.preset), every)
    conditions = used.calibration.conditions
    return {
        "preset": used.preset,
        "encoding": conditions.encoding,
        "anomaly_map": used.rule.anomaly_map,
        "L": conditions.L,
        "stride": conditions.stride,
        "spacing": conditions.spacing,
        "w": used.calibration.w,
        "early_stop": dataclasses.asdict(used.stop) if used.stop else None,
        "steps": float(np.mean([one.steps for one in found.slices])),
        "seconds": float(np.median(times)) if times else None,
        "seconds_all": times,
        "dice": found.unhealthy.dice,
        "auprc": found.unhealthy.auprc,
        "mixed_dice": found.mixed.dice,
        "accuracy": found.accuracy,
        "decision": found.decision,
        "decisions": {name: dataclasses.asdict(one) for name, one in found.decisions.items()},
    }


_HEAD = ["preset", "encoding, map", "L", "visited", "w", "steps a slice", "s a slice (spread)",
         "Dice", "AUPRC", "accuracy", "Dice, all slices"]  # fmt: skip


def _line(row: dict[str, Any]) -> list[str]:
    spacing = "" if row["spacing"] == "even" else ", even in log SNR"
    seconds = "not measured"
    if times := row["seconds_all"]:
        seconds = f"{row['seconds']:.2f} ({min(times):.2f} to {max(times):.2f})"
    return [
        row["preset"],
        f"{row['encoding'].upper()}, {row['anomaly_map']}",
        str(row["L"]),
        f"stride {row['stride']}{spacing}",
        f"{row['w']:g}",
        f"{row['steps']:.1f}",
        seconds,
        f"{row['dice']:.3f}",
        f"{row['auprc']:.3f}",
        f"{row['accuracy']:.3f}",
        f"{row['mixed_dice']:.3f}",
    ]


if __name__ == "__main__":
    main()
