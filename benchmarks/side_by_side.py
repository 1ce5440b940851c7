"""Speed and quality of our presets beside the loop of the reference implementation:

``python benchmarks/side_by_side.py SLICES``

Seconds are medians of rounds in which every method takes its turn on the same slices: a few
timesteps of long processes, times their number, and whole runs of short ones. Dice and AUPRC are
those of unhealthy slices, each segmented whatever the decision, alone, and cut by Algorithm 1. Peak
memory is that of a new process with 100 slices.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import common
import nibabel as nib
import numpy as np
import torch
from methods import Method, SliceOutput, open_methods, t_e_agreement

from anofpdm.calibrate.metrics import average_precision, dice
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import reports_errors, threads_option
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.refine.masks import median
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import SliceSet

TIMED_SLICES, TIMED_STEPS, SHORT, MEMORY_SLICES = 16, 4, 20, 100
HEAD = ["", "w", "evaluations a slice", "s a slice [quartiles]", "times as fast [quartiles]",
        "s a volume", "peak MiB, 100 slices", "Dice", "AUPRC",
        "t_e as exact, within a visited timestep"]  # fmt: skip


@click.command()
@click.argument("slices", type=common.PATH)
@click.option("--split", default="test", show_default=True)
@click.option("--every", default=8, show_default=True, help="Use every k-th slice only.")
@click.option("--rounds", default=5, show_default=True)
@threads_option
@click.option("--json", "json_path", type=common.PATH, default=common.RESULTS / "side-by-side.json")
@click.option("--memory-of", hidden=True)
@reports_errors
def main(slices, split, every, rounds, threads, json_path, memory_of):
    threads, bundle = threads or usable_cores(), open_bundle(DEFAULT)
    torch.set_num_threads(threads)
    if memory_of:
        (method,) = open_methods(bundle, threads, memory_of)
        size = len(bundle.manifest.modalities), bundle.manifest.grid.size
        method.allocate(phantom_slices(MEMORY_SLICES, *size))
        click.echo(json.dumps(common.peak_mib()))
        return
    labelled = common.open_split(slices, bundle, split, every)
    x0 = np.stack([labelled.x0(i) for i in range(len(labelled))])
    methods = open_methods(bundle, threads)
    seconds = timed(methods, x0[:TIMED_SLICES], rounds)
    progress, outputs = ProgressLine("methods"), {}
    for method in methods:
        outputs[method.name] = list(method.run(x0))
        progress(len(outputs), len(methods))
    rows = []
    for method in methods:
        output, run = outputs[method.name], (slices, "--memory-of", method.name)
        rows.append({
            "name": method.name, "w": method.w, "evaluations": method.evaluations,
            "seconds": seconds[method.name], "reference_seconds": seconds[methods[0].name],
            "volume_s": volume_seconds(method, bundle, threads),
            "peak_mib": common.run_separately(__file__, *run, "--threads", threads),
            **quality(output, labelled),
            "t_e": t_e_agreement(output, outputs["exact"], method.visited),
        })  # fmt: skip
    unhealthy = int(labelled.unhealthy.sum())
    about = {"machine": common.machine("torch", "openvino"), "threads": threads, "split": split}
    size = {"every": every, "slices": len(labelled), "unhealthy": unhealthy}
    write_json(json_path, {**about, **size, "rows": rows})
    click.echo(
        f"{len(labelled)} slices of the {split} split, {unhealthy} unhealthy; {threads} threads\n\n"
        f"{common.table(HEAD, [line(row) for row in rows])}"
    )


def timed(methods: Sequence[Method], x0: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds a slice of every method in every round."""
    shares = {method.name: 1.0 for method in methods}

    def work(method: Method) -> None:
        if len(method.visited) <= SHORT:
            list(method.run(x0))
        else:
            shares[method.name] = method.steps(x0, TIMED_STEPS) / method.evaluations

    seconds = common.in_turn([partial(work, method) for method in methods], rounds)
    return {
        method.name: [value / shares[method.name] / len(x0) for value in times]
        for method, times in zip(methods, seconds, strict=True)
    }


def volume_seconds(method: Method, bundle: Bundle, threads: int) -> float | None:
    """Of the example volume, as ``anofpdm-infer`` segments it; None where that takes long."""
    if len(method.visited) > SHORT:
        return None
    options = Options(preset=method.name)
    with Segmenter.load(bundle, options=options, device="cpu", threads=threads) as segmenter:
        return segmenter.segment(nib.load(common.EXAMPLE)).seconds


def quality(outputs: Sequence[SliceOutput], labelled: SliceSet) -> dict[str, float]:
    """Dice and AUPRC of the unhealthy slices."""
    sick = np.flatnonzero(labelled.unhealthy).tolist()
    overlaps = [dice(outputs[i].mask, labelled.mask(i)) for i in sick]
    heads = [labelled.x0(i).mean(axis=0) > -0.95 for i in sick]
    scores = [median(outputs[i].H)[head] for i, head in zip(sick, heads, strict=True)]
    drawn = [labelled.mask(i)[head] for i, head in zip(sick, heads, strict=True)]
    pooled = average_precision(np.concatenate(scores), np.concatenate(drawn))
    return {"dice": float(np.mean(overlaps)), "auprc": pooled}


def line(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    ratios = [b / a for a, b in zip(row["seconds"], row["reference_seconds"], strict=True)]
    volume = row["volume_s"]
    return [
        row["name"], f"{row['w']:g}", str(row["evaluations"]), common.spread(row["seconds"]),
        common.spread(ratios), "not measured" if volume is None else f"{volume:.1f}",
        f"{row['peak_mib']:.0f}", f"{row['dice']:.3f}", f"{row['auprc']:.3f}",
        f"{row['t_e']:.0%}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
