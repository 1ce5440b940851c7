"""Where M_t peaks, on labelled slices: ``python benchmarks/divergence.py SLICES --bundle BUNDLE``.

Runs the forward process to T and prints, for every visited timestep, M_t of healthy and unhealthy
slices (w = 0, where nothing is amplified), what of it is B_t and what the network: without clipping
M_t = (1 + w)^2 (1 - abar_t) / abar_t * mean((eps_healthy - eps_null)^2).
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from anofpdm.calibrate.labelled import fitting
from anofpdm.calibrate.sweep import sweep
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.method.process import Process
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import open_sliceset

_W = (0.0, 2.0, 8.0, 15.0, 30.0, 60.0)


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=2, show_default=True)
@click.option("--stride", default=50, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    slices: Path, bundle: Path, split: str, every: int, stride: int, json_path: Path | None
) -> None:
    opened = open_bundle(bundle)
    labelled = fitting(open_sliceset(slices), opened).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    schedule = opened.manifest.schedule
    curves = sweep(
        labelled,
        OnnxDenoiser(opened.network),
        Process(schedule, schedule.T, stride, opened.manifest.clip),
        _W,
        opened.manifest.scored_channels,
        progress=ProgressLine("slices"),
    )
    sick = labelled.unhealthy
    M = curves.M.mean(axis=-1)
    abar = schedule.abar[curves.timesteps - 1]
    rows = [
        {
            "t": int(t),
            "M_healthy": float(M[~sick, 0, i].mean()),
            "M_unhealthy": float(M[sick, 0, i].mean()),
            "eps_difference": float(M[:, 0, i].mean() * abar[i] / (1 - abar[i])),
            "amplification": float((1 - abar[i]) / abar[i]),
        }
        for i, t in enumerate(curves.timesteps)
    ]
    click.echo(f"{len(sick)} slices, {int(sick.sum())} unhealthy; w = 0\n")
    click.echo("| t | M healthy | M unhealthy | ratio | (eps_h - eps_0)^2 | (1 - abar) / abar |")
    click.echo("|---|---|---|---|---|---|")
    for row in rows:
        click.echo(
            f"| {row['t']} | {row['M_healthy']:.2e} | {row['M_unhealthy']:.2e} | "
            f"{row['M_unhealthy'] / row['M_healthy']:.2f} | {row['eps_difference']:.2e} | "
            f"{row['amplification']:.3g} |"
        )
    peaks = []
    click.echo("\n| w | t_e: 10 %, median, 90 % of the slices | t_e at the last timestep |")
    click.echo("|---|---|---|")
    for k, w in enumerate(curves.w):
        t_e = curves.timesteps[M[:, k].argmax(axis=1)]
        low, middle, high = np.percentile(t_e, [10, 50, 90])
        last = float((t_e == curves.timesteps[-1]).mean())
        peaks.append({"w": w, "t_e": [low, middle, high], "at_last": last})
        click.echo(f"| {w:g} | {low:.0f}, {middle:.0f}, {high:.0f} | {last:.0%} |")
    if json_path:
        name = opened.manifest.name
        write_json(json_path, {"bundle": name, "split": split, "steps": rows, "peaks": peaks})


if __name__ == "__main__":
    main()
