"""Quality and cost of each calibration of a bundle, on labelled slices:

``python benchmarks/presets.py SLICES --bundle BUNDLE``

Dice and AUPRC are those of unhealthy slices, each segmented whatever the decision. Seconds a slice
are medians of rounds in which every preset takes its turn on the same few slices.
"""

import dataclasses
from typing import Any

import click
import numpy as np
from common import PATH, in_turn, machine, open_split, table

from anofpdm.calibrate.evaluation import evaluate
from anofpdm.export.bundle_update import write_card_section
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.arguments import reports_errors, threads_option
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import SliceSet

_TIMED_SLICES = 4


@click.command()
@click.argument("slices", type=PATH)
@click.option("--bundle", type=PATH, default=DEFAULT)
@click.option("--preset", "names", multiple=True, help="Only these.  [default: all]")
@click.option("--anomaly-map", "maps", multiple=True, help="Each of these.  [default: calibrated]")
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=1, show_default=True, help="Compare every k-th slice only.")
@click.option("--repeat", default=3, show_default=True, help="Timings of each, or 0.")
@threads_option
@click.option("--json", "json_path", type=PATH)
@click.option("--add-to-card", is_flag=True, help="Put the table into the bundle's model card.")
@reports_errors
def main(slices, bundle, names, maps, split, every, repeat, threads, json_path, add_to_card):
    bundle = open_bundle(bundle)
    labelled = open_split(slices, bundle, split)
    segmenters, backends = [], {}
    for name in names or bundle.calibrations:
        for kind in maps or (None,):
            options = Options(preset=name, anomaly_map=kind)
            precision = resolve(bundle, options).calibration.conditions.precision
            if precision not in backends:
                backends[precision] = open_device("cpu", bundle, threads=threads,
                                                  precision=precision)  # fmt: skip
            segmenters.append(Segmenter(bundle, backends[precision], options=options))
    few = range(0, len(labelled), len(labelled) // _TIMED_SLICES + 1)
    timed = [Slice(i, labelled.x0(k)) for i, k in enumerate(few)]
    work = [lambda s=s: list(s.segment_slices(timed)) for s in segmenters]
    seconds = in_turn(work, repeat) if repeat else [[] for _ in segmenters]
    rows = []
    for segmenter, total in zip(segmenters, seconds, strict=True):
        times = [value / len(timed) for value in total]
        rows.append(_row(segmenter, labelled, every, times))
        click.echo(" | ".join(_line(rows[-1])), err=True)
    labelled = labelled.take(range(0, len(labelled), every))
    size = f"{len(labelled)} slices of {len(set(labelled.patients))} patients of the {split} split"
    lines = table(_HEAD, [_line(row) for row in rows])
    text = f"{size}, {int(labelled.unhealthy.sum())} unhealthy\n\n{lines}\n"
    click.echo(text)
    if json_path:
        about = {"bundle": bundle.manifest.name, "split": split, "every": every, "threads": threads}
        write_json(json_path, {"machine": machine(), **about, "rows": rows})
    if add_to_card:
        write_card_section(bundle, "## Presets", f"\n\n{text}")


def _row(segmenter: Segmenter, labelled: SliceSet, every: int, times: list[float]) -> dict:
    resolved = segmenter.plan
    result = evaluate(segmenter, labelled, ProgressLine(resolved.preset), every)
    conditions = resolved.calibration.conditions
    return {
        "preset": resolved.preset,
        "anomaly_map": resolved.rule.anomaly_map,
        **{name: getattr(conditions, name) for name in ("encoding", "L", "stride", "spacing")},
        "w": resolved.calibration.w,
        "early_stop": dataclasses.asdict(resolved.stop) if resolved.stop else None,
        "steps": float(np.mean([scores.steps for scores in result.slices])),
        "seconds": float(np.median(times)) if times else None,
        "seconds_all": times,
        "dice": result.unhealthy.dice,
        "auprc": result.unhealthy.auprc,
        "mixed_dice": result.mixed.dice,
        "accuracy": result.accuracy,
        "decision": result.decision,
        "decisions": {name: dataclasses.asdict(v) for name, v in result.decisions.items()},
    }


_HEAD = ["preset", "encoding, map", "L", "visited", "w", "steps a slice", "s a slice (spread)",
         "Dice", "AUPRC", "accuracy", "Dice, all slices"]  # fmt: skip


def _line(row: dict[str, Any]) -> list[str]:
    spacing = "" if row["spacing"] == "even" else ", even in log SNR"
    seconds = "not measured"
    if times := row["seconds_all"]:
        seconds = f"{row['seconds']:.2f} ({min(times):.2f} to {max(times):.2f})"
    return [
        row["preset"], f"{row['encoding'].upper()}, {row['anomaly_map']}", str(row["L"]),
        f"stride {row['stride']}{spacing}", f"{row['w']:g}", f"{row['steps']:.1f}", seconds,
        *(f"{row[name]:.3f}" for name in ("dice", "auprc", "accuracy", "mixed_dice")),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
