"""Our presets beside the loop of the reference implementation, with the same weights:

``python benchmarks/side_by_side.py SLICES``

Seconds are medians of interleaved rounds, each contender in turn on the same slices, warmed up:
a few timesteps of the long processes, times their number (every step costs the same), and whole
runs of the short ones. Dice, AUPRC and t_e are of whole runs; Dice and AUPRC of the unhealthy
slices, each segmented whatever the decision, alone, and cut by Algorithm 1. Peak memory is that of a
process of its own with 100 slices, see :mod:`side_memory`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import torch
from contenders import Contender, FoundSlice, Ours, Theirs, t_e_agreement
from machine import machine, table
from side_memory import peak_mib

from anofpdm.calibrate.labelled import fitting
from anofpdm.calibrate.metrics import average_precision, dice
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.errors import AnofpdmError, DeviceError, MissingExtraError
from anofpdm.runtime.refine.masks import median
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import SliceSet, open_sliceset

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "simulated_flair.nii.gz"
# The reference implementation's batch is of 100 slices; smaller ones suit a CPU's caches better.
BATCH, TIMED_SLICES, TIMED_STEPS, SHORT = 16, 16, 4, 20
HEAD = ["", "w", "evaluations a slice", "s a slice [quartiles]", "times as fast [quartiles]",
        "s a volume", "peak MiB, 100 slices", "Dice", "AUPRC",
        "t_e as exact, within a visited timestep"]  # fmt: skip


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True)
@click.option("--every", default=8, show_default=True, help="Use every k-th slice only.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--only", multiple=True, help="Measure these again, each in turn with the reference "
              "implementation; the others' rows are kept.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "side-by-side.json")  # fmt: skip
@reports_errors
def main(
    slices: Path,
    split: str,
    every: int,
    rounds: int,
    threads: int | None,
    only: tuple[str, ...],
    json_path: Path,
) -> None:
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    bundle = open_bundle(DEFAULT)
    labelled = fitting(open_sliceset(slices), bundle).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    x0 = np.stack([labelled.x0(i) for i in range(len(labelled))])
    everyone = contenders(bundle, threads)
    names, reference = [one.name for one in everyone], everyone[0]
    if unknown := set(only) - set(names):
        raise AnofpdmError(f"nobody is called {', '.join(sorted(unknown))}: there are {names}")
    others = set(names) - set(only) if only else set()
    settings = [split, every, threads, machine()["cpu"]]
    kept = _kept(json_path, settings, others) if others else {}
    again = [one for one in everyone if one.name not in kept]
    seconds = timed([reference, *(one for one in again if one is not reference)],
                    x0[:TIMED_SLICES], rounds)  # fmt: skip
    found = {}
    for one in everyone:
        if one.name in kept and one.name != "exact":  # whose t_e the others' are compared with
            continue
        began = time.perf_counter()
        found[one.name] = list(one.run(x0))
        whole = (time.perf_counter() - began) / len(x0)
        click.echo(f"{one.name}: {whole:.2f} s a slice, whole runs", err=True)
    rows = [
        kept.get(one.name)
        or {
            "name": one.name,
            "w": one.w,
            "evaluations": one.evaluations,
            "seconds": seconds[one.name],
            "reference_seconds": seconds[reference.name],
            "volume_s": volume_seconds(one, bundle, threads),
            "peak_mib": peak_mib(one.name, threads),
            **quality(found[one.name], labelled),
            "t_e": t_e_agreement(found[one.name], found["exact"], one.visited),
        }
        for one in everyone
    ]
    write_json(json_path, {"machine": machine("torch", "openvino"), "threads": threads,
                           "split": split, "every": every, "slices": len(labelled),
                           "unhealthy": int(labelled.unhealthy.sum()), "rows": rows})  # fmt: skip
    click.echo(
        f"{len(labelled)} slices of the {split} split, {int(labelled.unhealthy.sum())} unhealthy; "
        f"{threads} threads\n"
    )
    click.echo(table(HEAD, [line(row) for row in rows]))


def _kept(path: Path, settings: list[Any], names: set[str]) -> dict[str, dict[str, Any]]:
    """The rows of these names that were measured before, with the same settings, on such a CPU."""
    held = json.loads(path.read_text(encoding="utf-8"))
    if [held["split"], held["every"], held["threads"], held["machine"]["cpu"]] != settings:
        raise AnofpdmError(f"{path} was measured with other settings: measure all of them again")
    return {row["name"]: row for row in held["rows"] if row["name"] in names}


def contenders(bundle: Bundle, threads: int) -> list[Contender]:
    """The reference implementation first; without presets in bfloat16 where nothing computes in it,
    with a note."""
    backends = {"fp32": open_device("cpu", bundle, threads=threads)}
    try:
        backends["bf16"] = open_device("cpu", bundle, threads=threads, precision="bf16")
    except (DeviceError, MissingExtraError) as error:
        click.echo(f"note: {error}", err=True)
    fast = bundle.calibrations["fast"].w
    setups = {name: Options(preset=name) for name in bundle.calibrations if name != "ddpm"}
    setups |= {f"exact, w = {fast:g}": Options(preset="exact", w=fast)}
    ours = []
    for name, setup in sorted(setups.items()):
        precision = resolve(bundle, setup).calibration.conditions.precision
        if precision in backends:
            ours.append(Ours(name, bundle, backends[precision], setup))
    return [Theirs(bundle, BATCH), *ours]


def timed(everyone: Sequence[Contender], x0: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds a slice of every contender in every round."""
    seconds: dict[str, list[float]] = {one.name: [] for one in everyone}
    for number in range(rounds + 1):
        for one in everyone:
            began, share = time.perf_counter(), 1.0
            if len(one.visited) <= SHORT:
                list(one.run(x0))
            else:
                share = one.steps(x0, TIMED_STEPS) / one.evaluations
            took = (time.perf_counter() - began) / share / len(x0)
            if number:  # the first round warms up
                seconds[one.name].append(took)
    return seconds


def volume_seconds(one: Contender, bundle: Bundle, threads: int) -> float | None:
    """Of the example volume, as ``anofpdm-infer`` segments it: healthy slices leave early. None
    where that takes long."""
    if len(one.visited) > SHORT:
        return None
    setup = Options(preset=one.name)
    with Segmenter.load(bundle, options=options, device="cpu", threads=threads) as segmenter:
        return segmenter.segment(nib.load(EXAMPLE)).seconds


def quality(found: Sequence[FoundSlice], labelled: SliceSet) -> dict[str, float]:
    """Dice and AUPRC of the unhealthy slices."""
    sick = np.flatnonzero(labelled.unhealthy).tolist()
    overlaps = [dice(found[i].mask, labelled.mask(i)) for i in sick]
    heads = [labelled.x0(i).mean(axis=0) > -0.95 for i in sick]
    scores = [median(found[i].H)[head] for i, head in zip(sick, heads, strict=True)]
    drawn = [labelled.mask(i)[head] for i, head in zip(sick, heads, strict=True)]
    pooled = average_precision(np.concatenate(scores), np.concatenate(drawn))
    return {"dice": float(np.mean(overlaps)), "auprc": pooled}


def line(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    ratios = [b / a for a, b in zip(row["seconds"], row["reference_seconds"], strict=True)]
    volume = row["volume_s"]
    return [
        row["name"], f"{row['w']:g}", str(row["evaluations"]), spread(row["seconds"]),
        spread(ratios), "not measured" if volume is None else f"{volume:.1f}",
        f"{row['peak_mib']:.0f}", f"{row['dice']:.3f}", f"{row['auprc']:.3f}",
        f"{row['t_e']:.0%}",
    ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Median and quartiles, three digits."""
    low, middle, high = (_three(v) for v in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{middle} [{low}, {high}]"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    main()
