"""``anofpdm-calibrate``: completes a bundle from labelled validation slices."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.anomaly_map import ANOMALY_MAPS
from anofpdm.runtime.bundle import CALIBRATION, open_bundle, write_calibration
from anofpdm.runtime.calibration import Calibration
from anofpdm.runtime.command import (
    ProgressLine,
    device_option,
    reports_errors,
    seed_option,
    show_device,
    threads_option,
)
from anofpdm.runtime.device import open_device
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.files import writable_folder
from anofpdm.runtime.forward import ENCODINGS, Process
from anofpdm.runtime.schedule import SPACINGS
from anofpdm.runtime.sliceset import open_sliceset

from .choose import Choice, check_labels, choose
from .early_stop import choose_stop
from .labelled import fitting
from .sweep import sweep

_LARGEST = 10_000


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Is completed.")
@click.option("--split", default="val", show_default=True)
@click.option("--w", "w_text", default="1,2,3,4,6,8,10,15,20,30,40,50,60", show_default=True,
              help="Candidate guidance strengths.")  # fmt: skip
@click.option("--length", help="Candidate L: how far the forward process goes.  "
              "[default: the manifest's L]")  # fmt: skip
@click.option("--stride", default=1, show_default=True, type=click.IntRange(min=1),
              help="Visit every k-th timestep.")  # fmt: skip
@click.option("--spacing", type=click.Choice(SPACINGS), default="even", show_default=True,
              help="Evenly spread over t, or over log SNR.")  # fmt: skip
@click.option("--encoding", type=click.Choice(ENCODINGS), default="ddim", show_default=True,
              help="Where x_t comes from: eq. 4 or eq. 2 of the paper.")  # fmt: skip
@click.option("--anomaly-map", type=click.Choice(ANOMALY_MAPS), default="aggregate",
              show_default=True, help="What is cut unless asked otherwise: the mean of the maps up "
              "to t_e, or the one at t_e.")  # fmt: skip
@click.option("--verdict", type=click.Choice(["cosine", "map"]), default="cosine",
              show_default=True, help="What calls a slice unhealthy: the paper's cosine, or the "
              "99 % quantile of its anomaly map.")  # fmt: skip
@click.option("--every", default=1, show_default=True, type=click.IntRange(min=1),
              help="Use every k-th slice only, to save time.")  # fmt: skip
@click.option("--preset", help="Its name, for anofpdm-infer --preset.  [default: exact for stride "
              "1, else fast; ddpm-exact, fast-last and so on]")  # fmt: skip
@click.option("--default", "is_default", is_flag=True, help="Make it the bundle's default.")
@seed_option
@device_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    slices: Path,
    bundle: Path,
    split: str,
    w_text: str,
    length: str | None,
    stride: int,
    spacing: str,
    encoding: str,
    anomaly_map: str,
    verdict: str,
    every: int,
    preset: str | None,
    is_default: bool,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Choose w, L, M_max, the verdict's threshold and when to stop, from image-level labels alone.

    SLICES is a folder of prepared slices (anofpdm-train writes one). Masks are not looked at.

    Example: anofpdm-calibrate run/slices --bundle model.anofpdm --stride 60
    """
    opened = open_bundle(bundle)
    writable_folder(bundle / CALIBRATION)
    w = _numbers(w_text, "--w", timesteps=False)
    lengths: tuple[int, ...] = (opened.manifest.L,)
    if length:
        lengths = tuple(int(number) for number in _numbers(length, "--length", timesteps=True))
    if max(lengths) > opened.manifest.schedule.T:
        raise AnofpdmError(f"--length {length}: the schedule has {opened.manifest.schedule.T}")
    if spacing != "even" and len(lengths) > 1:
        raise AnofpdmError(f"--spacing {spacing} visits other timesteps for every L: name one L")
    labelled = fitting(open_sliceset(slices), opened).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    check_labels(labelled.unhealthy, f"the slices of split {split!r}")
    backend = open_device(device, opened, threads=threads, engines=False)
    schedule, clip = opened.manifest.schedule, opened.manifest.clip
    with closing(backend):
        curves = sweep(
            labelled,
            backend.denoiser,
            Process(schedule, max(lengths), stride, clip, encoding, spacing),
            w,
            opened.manifest.scored_channels,
            seed=seed,
            slots=backend.slots,
            progress=ProgressLine("slices"),
        )
    show_device(device, backend)
    choice = choose(curves, labelled.unhealthy, lengths, verdict)
    best = choice.best
    stop = choose_stop(curves.up_to(best.L), labelled.unhealthy, best, verdict)
    calibration = Calibration(
        w=best.w,
        Cos_w=best.Cos_w,
        H_99=best.H_99,
        M_max=best.M_max,
        conditions=opened.conditions(encoding, best.L, stride, spacing),
        verdict=verdict,
        anomaly_map=anomaly_map,
        early_stop=stop,
        candidates=choice.candidates,
        slices={
            "split": split,
            "every": every,
            "patients": len(set(labelled.patients)),
            "slices": len(labelled),
            "unhealthy": int(labelled.unhealthy.sum()),
            "accuracy": best.accuracy(verdict),
        },
    )
    name = preset or _usual_name(encoding, stride, anomaly_map)
    replaced = opened.calibrations.get(name)
    write_calibration(opened, name, calibration, is_default)
    _report(choice, calibration, labelled.unhealthy)
    instead = f", in place of {replaced.conditions}" if replaced else ""
    click.echo(f"written to {bundle} as preset {name} ({calibration.conditions}){instead}")


def _usual_name(encoding: str, stride: int, anomaly_map: str) -> str:
    parts = [encoding if encoding != "ddim" else "", "exact" if stride == 1 else "fast",
             anomaly_map if anomaly_map != "aggregate" else ""]  # fmt: skip
    return "-".join(part for part in parts if part)


def _report(choice: Choice, calibration: Calibration, unhealthy: NDArray[np.bool_]) -> None:
    for c in choice.candidates:
        click.echo(
            f"L {c.L:4d}  w {c.w:5g}  Cos_w {c.Cos_w:.5f}  accuracy {c.cosine_accuracy:.3f}  "
            f"H_99 {c.H_99:.5f}  accuracy {c.map_accuracy:.3f}"
        )
    best, stop = choice.best, calibration.early_stop
    click.echo(
        f"chosen: L = {best.L}, w = {best.w:g}, accuracy of the {choice.verdict} "
        f"{best.accuracy(choice.verdict):.3f} on {len(unhealthy)} slices (calling all the same: "
        f"{max(unhealthy.mean(), 1 - unhealthy.mean()):.3f})"
    )
    if stop is None:
        click.echo("early stop: no rule that was tried saves a tenth of the steps")
        return
    click.echo(
        f"early stop ({'on' if stop.safe else 'off'} by default): {stop.patience} steps below "
        f"{stop.drop:g} of the maximum; t_e kept on {stop.agreement:.1%} of the slices, accuracy "
        f"{stop.accuracy:.3f} instead of {stop.full_accuracy:.3f}, {stop.mean_steps:.1f} of "
        f"{stop.full_steps} steps"
    )


def _numbers(text: str, option: str, *, timesteps: bool) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise AnofpdmError(f"{option} {text}: give numbers with commas between them") from None
    for number in numbers:
        whole = number >= 1 and number.is_integer()
        if not 0 <= number <= _LARGEST or (timesteps and not whole):
            raise AnofpdmError(f"{option} {text}: {number:g} is not possible")
    return tuple(dict.fromkeys(numbers))
