"""``anofpdm-calibrate``: completes a bundle from labelled validation slices."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click

from anofpdm.runtime.bundle import CALIBRATION, Calibration, open_bundle, write_calibration
from anofpdm.runtime.command import ProgressLine, reports_errors, seed_option, threads_option
from anofpdm.runtime.denoiser import OnnxDenoiser
from anofpdm.runtime.errors import AnofpdmError, CohortError
from anofpdm.runtime.files import writable_folder
from anofpdm.runtime.forward import Process
from anofpdm.runtime.sliceset import open_sliceset

from .choose import choose
from .labelled import fitting
from .sweep import sweep


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Is completed.")
@click.option("--split", default="val", show_default=True)
@click.option("--w", "w_text", default="1,2,3,4,6,8,10,15,20,30,40,50,60", show_default=True,
              help="Candidate guidance strengths.")  # fmt: skip
@click.option("--length", default="300", show_default=True,
              help="Candidate L: how far the forward process goes.")  # fmt: skip
@click.option("--stride", default=1, show_default=True, type=click.IntRange(min=1),
              help="Visit every k-th timestep.")  # fmt: skip
@click.option("--verdict", type=click.Choice(["cosine", "map"]), default="cosine",
              show_default=True, help="What calls a slice unhealthy: the paper's cosine, or the "
              "99 % quantile of its anomaly map.")  # fmt: skip
@seed_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    slices: Path,
    bundle: Path,
    split: str,
    w_text: str,
    length: str,
    stride: int,
    verdict: str,
    seed: int,
    threads: int | None,
) -> None:
    """Choose w, L, M_max and the verdict's threshold from image-level labels alone.

    SLICES is a folder of prepared slices (anofpdm-train writes one). Masks are not looked at.

    Example: anofpdm-calibrate run/slices --bundle model.anofpdm --stride 60
    """
    opened = open_bundle(bundle)
    writable_folder(bundle / CALIBRATION)
    w = _numbers(w_text, "--w", timesteps=False)
    lengths = tuple(int(number) for number in _numbers(length, "--length", timesteps=True))
    if max(lengths) > opened.manifest.schedule.T:
        raise AnofpdmError(f"--length {length}: the schedule has {opened.manifest.schedule.T}")
    labelled = fitting(open_sliceset(slices), opened).split(split)
    if labelled.unhealthy.all() or not labelled.unhealthy.any():
        raise CohortError(f"split {split!r} holds one class only: calibration needs both")
    process = Process(opened.manifest.schedule, max(lengths), stride, opened.manifest.clip)
    curves = sweep(
        labelled,
        OnnxDenoiser(opened.network, threads),
        process,
        w,
        opened.manifest.scored_channels,
        seed=seed,
        progress=ProgressLine("slices"),
    )
    choice = choose(curves, labelled.unhealthy, lengths, verdict)
    calibration = Calibration(
        w=choice.best.w,
        Cos_w=choice.best.Cos_w,
        H_99=choice.best.H_99,
        M_max=choice.M_max,
        conditions=opened.conditions(stride, choice.best.L),
        verdict=verdict,
        candidates=tuple(dataclasses.asdict(candidate) for candidate in choice.candidates),
        slices={
            "split": split,
            "patients": len(set(labelled.patients)),
            "slices": len(labelled),
            "unhealthy": int(labelled.unhealthy.sum()),
            "accuracy": choice.best.accuracy(verdict),
        },
    )
    write_calibration(opened, calibration)
    for c in choice.candidates:
        click.echo(
            f"L {c.L:4d}  w {c.w:5g}  Cos_w {c.Cos_w:.5f}  accuracy {c.cosine_accuracy:.3f}  "
            f"H_99 {c.H_99:.5f}  accuracy {c.map_accuracy:.3f}"
        )
    click.echo(
        f"chosen: L = {choice.best.L}, w = {choice.best.w:g}, accuracy of the {verdict} "
        f"{choice.best.accuracy(verdict):.3f} on {len(labelled)} slices: written to {bundle}"
    )


def _numbers(text: str, option: str, *, timesteps: bool) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise AnofpdmError(f"{option} {text}: give numbers with commas between them") from None
    for number in numbers:
        whole = number >= 1 and number.is_integer()
        if not math.isfinite(number) or number < 0 or (timesteps and not whole):
            raise AnofpdmError(f"{option} {text}: {number:g} is not possible")
    return numbers
