"""``anofpdm-calibrate``: completes a bundle from labelled validation slices."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import CALIBRATION, open_bundle, write_calibration
from anofpdm.runtime.bundle.calibration import LOWERED, Calibration
from anofpdm.runtime.bundle.options import PRECISIONS
from anofpdm.runtime.cli.arguments import (
    OneLineCommand,
    device_option,
    reports_errors,
    seed_option,
    threads_option,
)
from anofpdm.runtime.cli.console import ProgressLine, print_device
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.method.anomaly_map import ANOMALY_MAPS
from anofpdm.runtime.method.decision import DECISIONS
from anofpdm.runtime.method.process import ENCODINGS, Process
from anofpdm.runtime.method.schedule import SPACINGS
from anofpdm.runtime.method.threshold import THRESHOLDS
from anofpdm.runtime.refine.guided_filter import WIDEST_RADIUS_MM
from anofpdm.runtime.refine.through_plane import WIDEST_MM, Refinement, neighbour_windows
from anofpdm.runtime.util.files import writable_folder
from anofpdm.train.dataset import open_sliceset

from .choose import Labels, check_labels, choose
from .early_stop import choose_stop
from .labelled import check_spacing, fitting
from .peaks import failures, peak_report
from .plausibility import fit_plausibility
from .report import report
from .sweep import sweeps

_LARGEST = 10_000


@click.command(cls=OneLineCommand)
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Is completed.")
@click.option("--split", default="val", show_default=True)
@click.option("--w", "w_text", default="1,2,3,4,6,8,10,15,20,30,40,50,60", show_default=True,
              help="Candidate guidance strengths.")  # fmt: skip
@click.option("--length", help="Candidate L: how far the forward process goes.  "
              "[default: from 200 in hundreds to the manifest's L]")  # fmt: skip
@click.option("--stride", default=1, show_default=True, type=click.IntRange(min=1),
              help="Visit every k-th timestep.")  # fmt: skip
@click.option("--spacing", type=click.Choice(SPACINGS), default="even", show_default=True,
              help="Evenly spread over t, or over log SNR.")  # fmt: skip
@click.option("--encoding", type=click.Choice(ENCODINGS), default="ddim", show_default=True,
              help="Where x_t comes from: eq. 4 or eq. 2 of the paper.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
              help="bf16: for CPUs that have it; takes the extra bf16.")  # fmt: skip
@click.option("--anomaly-map", type=click.Choice(ANOMALY_MAPS), default="aggregate",
              show_default=True, help="What is cut unless asked otherwise: the mean of the maps up "
              "to t_e, or the one at t_e.")  # fmt: skip
@click.option("--decision", type=click.Choice(DECISIONS), help="What calls a slice unhealthy: the "
              "paper's cosine, or a logistic regression on it, the alignment and the map's "
              "peak.  "
              "[default: what is right more often on patients that were left out]")  # fmt: skip
@click.option("--threshold-rule", type=click.Choice(THRESHOLDS), default="algorithm-1",
              show_default=True, help="Where maps are cut: by the paper's Algorithm 1, or half-way "
              "from there to Otsu's threshold.")  # fmt: skip
@click.option("--neighbours", "neighbours_mm", type=click.FloatRange(0, WIDEST_MM), default=0.0,
              show_default=True, metavar="MM", help="Average maps, and what decisions go by, "
              "over slices of a volume that lie nearer than this.")  # fmt: skip
@click.option("--flip_tta", is_flag=True, help="Show the network every second slice flip_tta, left "
              "for right: for networks trained with flips, and with --neighbours.")  # fmt: skip
@click.option("--guided", "guided_mm", type=click.FloatRange(0, WIDEST_RADIUS_MM), default=0.0,
              show_default=True, metavar="MM", help="Fit maps to the edges of their slices before "
              "they are cut: by a guided filter of this radius, rounded to pixels.")  # fmt: skip
@click.option("--every", default=1, show_default=True, type=click.IntRange(min=1),
              help="Use every k-th slice only, to save time; not with --neighbours.")  # fmt: skip
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
    precision: str,
    anomaly_map: str,
    decision: str | None,
    threshold_rule: str,
    neighbours_mm: float,
    flip_tta: bool,
    guided_mm: float,
    every: int,
    preset: str | None,
    is_default: bool,
    seed: int,
    device: str,
    threads: int | None,
) -> None:
    """Choose w, L, M_max, the decision and when to stop, from image-level labels alone.

    SLICES is a folder of prepared slices (anofpdm-train writes one). Masks are not looked at.

    Example: anofpdm-calibrate run/slices --bundle model.anofpdm --stride 60
    """
    opened = open_bundle(bundle)
    writable_folder(bundle / CALIBRATION)
    w = _numbers(w_text, "--w", timesteps=False)
    lengths = _lengths(length, opened.manifest.L, opened.manifest.schedule.T)
    labelled = fitting(open_sliceset(slices), opened).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    check_labels(labelled.unhealthy, f"the slices of split {split!r}")
    if every > 1 and (neighbours_mm or flip_tta):
        raise AnofpdmError(
            "--neighbours and --flip_tta take slices that lie beside each other: leave --every out"
        )
    check_spacing(labelled, neighbours_mm)
    windows = neighbour_windows(labelled.slices(), neighbours_mm) if neighbours_mm else None
    labels = Labels(labelled.unhealthy, labelled.patients, windows)
    backend = open_device(device, opened, threads=threads, engines=False, precision=precision)
    manifest = opened.manifest
    process = Process(manifest.schedule, max(lengths), stride, manifest.clip, encoding, spacing)
    refinement = Refinement.of(neighbours_mm, flip_tta, guided_mm, manifest.grid.pixel_mm)
    with closing(backend):
        curves = sweeps(
            labelled,
            backend.denoiser,
            process,
            lengths,
            w,
            manifest.scored_channels,
            anomaly_map=anomaly_map,
            refinement=refinement,
            seed=seed,
            slots=backend.slots,
            progress=ProgressLine("slices"),
        )
    print_device(backend)
    choice = choose(curves, labels, decision)
    best = choice.best
    own = curves[best.L]
    calibration = Calibration(
        w=best.w,
        Cos_w=best.Cos_w,
        logistic=best.logistic,
        M_max=best.M_max,
        conditions=opened.conditions(encoding, best.L, stride, spacing, precision),
        decision=choice.decision,
        anomaly_map=anomaly_map,
        threshold_rule=threshold_rule,
        neighbours_mm=neighbours_mm,
        flip_tta=flip_tta,
        guided_mm=guided_mm,
        early_stop=choose_stop(own, labels, best, choice.decision),
        plausibility=fit_plausibility(own.MSE_0, labels),
        peaks=peak_report(own, best.w, labels),
        warnings=failures(own, choice, labels),
        candidates=choice.candidates,
        slices={
            "split": split,
            "every": every,
            "patients": len(set(labelled.patients)),
            "slices": len(labelled),
            "unhealthy": int(labels.unhealthy.sum()),
            "accuracy": best.accuracy(choice.decision),
            "left_out_accuracy": dict(choice.cross_validated),
        },
    )
    name = preset or _usual_name(encoding, stride, anomaly_map, precision)
    replaced = opened.calibrations.get(name)
    write_calibration(opened, name, calibration, is_default)
    for line in report(choice, calibration, labels):
        click.echo(line)
    for line in calibration.warnings:
        click.echo(f"warning: {line}", err=True)
    instead = f", in place of {replaced.conditions}" if replaced else ""
    click.echo(f"written to {bundle} as preset {name} ({calibration.conditions}){instead}")


def _usual_name(encoding: str, stride: int, anomaly_map: str, precision: str) -> str:
    parts = [encoding if encoding != "ddim" else "", "exact" if stride == 1 else "fast",
             anomaly_map if anomaly_map != "aggregate" else "",
             precision if precision in LOWERED else ""]  # fmt: skip
    return "-".join(part for part in parts if part)


def _lengths(text: str | None, furthest: int, T: int) -> tuple[int, ...]:
    if text is None:
        return (*range(min(200, furthest), furthest, 100), furthest)
    lengths = tuple(int(number) for number in _numbers(text, "--length", timesteps=True))
    if max(lengths) > T:
        raise AnofpdmError(f"--length {text}: the schedule has {T}: give at most that")
    return lengths


def _numbers(text: str, option: str, *, timesteps: bool) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise AnofpdmError(f"{option} {text}: give numbers with commas between them") from None
    allowed = (
        f"whole numbers from 1 to {_LARGEST}" if timesteps else f"numbers from 0 to {_LARGEST}"
    )
    for number in numbers:
        whole = number >= 1 and number.is_integer()
        if not 0 <= number <= _LARGEST or (timesteps and not whole):
            raise AnofpdmError(f"{option} {text}: {number:g} is not possible: give {allowed}")
    return tuple(dict.fromkeys(numbers))
