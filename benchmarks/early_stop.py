"""Early stop on patients it was not calibrated on:

``python benchmarks/early_stop.py SLICES --bundle BUNDLE --length 951 --stride 50``

Calibrates L, w and the stopping rule on one split, in memory, and looks at another: how often is
t_e that of the full process, what happens to the decision, how many steps are saved. Each slice is
judged alone.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from machine import table
from numpy.typing import NDArray

from anofpdm.calibrate.choose import Labels, choose
from anofpdm.calibrate.early_stop import choose_stop
from anofpdm.calibrate.labelled import fitting
from anofpdm.calibrate.sweep import Curves, sweep
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.calibration import Candidate, EarlyStop
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.method.decision import DECISIONS
from anofpdm.runtime.method.process import ENCODINGS, Process
from anofpdm.runtime.util.files import write_json
from anofpdm.train.dataset import open_sliceset


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--length", "L", default=951, show_default=True)
@click.option("--stride", default=50, show_default=True)
@click.option("--encoding", type=click.Choice(ENCODINGS), default="ddim", show_default=True)
@click.option("--w", "w_text", default="2,8,15,30", show_default=True)
@click.option("--decision", type=click.Choice(DECISIONS), default="calibrated", show_default=True)
@click.option("--every", default=2, show_default=True, help="Use every k-th slice only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    slices: Path,
    bundle: Path,
    L: int,
    stride: int,
    encoding: str,
    w_text: str,
    decision: str,
    every: int,
    json_path: Path | None,
) -> None:
    opened = open_bundle(bundle)
    process = Process(opened.manifest.schedule, L, stride, opened.manifest.clip, encoding)
    denoiser, scored = OnnxDenoiser(opened.network), opened.manifest.scored_channels
    everything = fitting(open_sliceset(slices), opened)
    splits = {}
    for name in ("val", "test"):
        split = everything.split(name)
        splits[name] = split.take(range(0, len(split), every))
    w = tuple(float(number) for number in w_text.split(","))
    curves = sweep(splits["val"], denoiser, process, w, scored, progress=ProgressLine("val"))
    labels = Labels(splits["val"].unhealthy, splits["val"].patients)
    best = choose({L: curves}, labels, decision).best
    stop = choose_stop(curves, labels, best, decision)
    if stop is None:
        click.echo(f"no rule saves a tenth of the {len(process.timesteps)} steps")
        return
    unseen = sweep(splits["test"], denoiser, process, (best.w,), scored,
                   progress=ProgressLine("test"))  # fmt: skip
    M, sick = unseen.M[:, 0], splits["test"].unhealthy
    steps = stop.rule.steps(M)
    stopped = [M[i, :n].argmax(axis=0) for i, n in enumerate(steps)]
    agreement = float((np.array(stopped) == M.argmax(axis=1)).all(axis=1).mean())
    n = M.shape[1]
    calls = {
        "full": _unhealthy(unseen, np.full(len(sick), n), best, decision),
        "stopped": _unhealthy(unseen, steps, stop, decision),
    }
    accuracy = {name: float((called == sick).mean()) for name, called in calls.items()}
    click.echo(
        f"L = {L}, stride {stride}, {encoding}, w = {best.w:g}; stop after {stop.patience} steps "
        f"below {stop.drop:g} of the maximum; {'on' if stop.safe else 'off'} by default\n"
    )
    rows = [
        ["val", str(len(splits["val"])), f"{stop.agreement:.1%}",
         f"{stop.full_accuracy:.3f} -> {stop.accuracy:.3f}",
         f"{n} -> {stop.mean_steps:.1f}"],
        ["test", str(len(sick)), f"{agreement:.1%}",
         f"{accuracy['full']:.3f} -> {accuracy['stopped']:.3f}", f"{n} -> {steps.mean():.1f}"],
    ]  # fmt: skip
    click.echo(table(["split", "slices", "t_e kept", "accuracy", "steps a slice"], rows))
    if json_path:
        test = {
            "slices": len(sick),
            "agreement": agreement,
            "accuracy": accuracy,
            "steps": float(steps.mean()),
        }
        about = {"bundle": opened.manifest.name, "L": L, "stride": stride, "encoding": encoding}
        write_json(json_path, {**about, "w": best.w, "val": asdict(stop), "test": test})
    if agreement < stop.agreement:
        raise click.ClickException("t_e changes more often than on the calibration's slices")


def _unhealthy(
    curves: Curves, steps: NDArray[np.int64], thresholds: Candidate | EarlyStop, decision: str
) -> NDArray[np.bool_]:
    """(N,) decisions when slice i is left after ``steps[i]`` steps; ``curves`` are of one w. Of the
    calibrated decision's three numbers the peak is that of the full sweep's map: what the runtime
    would say differs where t_e is not kept."""
    statistics = curves.statistics(0, steps)
    if decision == "calibrated":
        return np.asarray(thresholds.logistic.log_odds(statistics) >= 0)
    return np.asarray(statistics.cosine <= thresholds.Cos_w)


if __name__ == "__main__":
    main()
