"""``anofpdm-calibrate``: completes a bundle from labelled validation slices."""

from contextlib import closing
from pathlib import Path

import click

from anofpdm.export.bundle_update import write_calibration
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import CALIBRATION, open_bundle
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
from anofpdm.runtime.refine.through_plane import WIDEST_MM, Refinement
from anofpdm.runtime.util.files import writable_folder
from anofpdm.train.dataset import open_sliceset

from .choose import Labels, check_labels, choose
from .early_stop import choose_stop
from .peaks import failures, peak_report
from .plausibility import fit_plausibility
from .report import report
from .sweep import sweeps
from .windows import neighbour_windows

_LARGEST = 10_000


@click.command(cls=OneLineCommand)
@click.argument("slices", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="Bundle to write the calibration into.",
)
@click.option("--split", default="val", show_default=True, help="Split of the slices.")
@click.option("--w", "w_text", default="1,2,3,4,6,8,10,15,20,30,40,50,60", show_default=True,
              help="Candidate guidance strengths, with commas.")  # fmt: skip
@click.option("--length", help="Candidate L, the last timestep, with commas.  [default: from "
              "200 in hundreds to the manifest's L]")  # fmt: skip
@click.option("--stride", default=1, show_default=True, type=click.IntRange(min=1),
              help="Step between visited timesteps.")  # fmt: skip
@click.option("--spacing", type=click.Choice(SPACINGS), default="even", show_default=True,
              help="Spacing of the visited timesteps: even in t, or in log SNR.")  # fmt: skip
@click.option("--encoding", type=click.Choice(ENCODINGS), default="ddim", show_default=True,
              help="Forward process: DDIM (eq. 4 of the paper) or DDPM (eq. 2).")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
              help="Precision of the network; bf16 needs the extra bf16 and a CPU "
              "that computes in it.")  # fmt: skip
@click.option("--anomaly-map", type=click.Choice(ANOMALY_MAPS), default="aggregate",
              show_default=True, help="Anomaly map: the mean of the maps up to t_e, or the last of "
              "them.")  # fmt: skip
@click.option("--decision", type=click.Choice(DECISIONS), help="Image-level decision: the paper's "
              "cosine, or a logistic regression on the cosine, the alignment and the map's peak.  "
              "[default: the more accurate one on left-out patients]")  # fmt: skip
@click.option("--threshold-rule", type=click.Choice(THRESHOLDS), default="algorithm-1",
              show_default=True, help="Threshold of the anomaly map: Algorithm 1 of the paper, or "
              "its mean with Otsu's threshold.")  # fmt: skip
@click.option("--neighbours", "neighbours_mm", type=click.FloatRange(0, WIDEST_MM), default=0.0,
              show_default=True, metavar="MM", help="Width of the window of neighbouring slices "
              "that maps and statistics are averaged over.")  # fmt: skip
@click.option("--flip-tta", is_flag=True, help="Flip test-time augmentation: every second slice "
              "is flipped, left for right; for networks trained with --flip, and with "
              "--neighbours.")  # fmt: skip
@click.option("--guided", "guided_mm", type=click.FloatRange(0, WIDEST_RADIUS_MM), default=0.0,
              show_default=True, metavar="MM", help="Radius of the guided filter that fits maps to "
              "the edges in their slices, rounded to pixels.")  # fmt: skip
@click.option("--every", default=1, show_default=True, type=click.IntRange(min=1),
              help="Step between slices, to save time; not with --neighbours.")  # fmt: skip
@click.option("--preset", help="Name of the preset, for anofpdm-infer --preset.  [default: exact "
              "for stride 1, else fast; ddpm-exact, fast-last and so on]")  # fmt: skip
@click.option("--default", "is_default", is_flag=True, help="Make the preset the bundle's default.")
@seed_option
@device_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    slices: Path,
    path: Path,
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
    """Choose w, L, M_max, the decision and the stopping rule from image-level labels alone.

    SLICES is a folder of prepared slices (anofpdm-train writes one). Masks are not used.

    Example: anofpdm-calibrate run/slices --bundle model.anofpdm --stride 60
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    writable_folder(path / CALIBRATION)
    w = _numbers(w_text, "--w", timesteps=False)
    lengths = _lengths(length, manifest.L, manifest.schedule.T)
    labelled = open_sliceset(slices).require(manifest.modalities, manifest.grid).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    check_labels(labelled.unhealthy, f"the slices of split {split!r}")
    if every > 1 and (neighbours_mm or flip_tta):
        raise AnofpdmError(
            "--neighbours and --flip-tta need neighbouring slices: leave --every out"
        )
    labelled.require_spacing(neighbours_mm)
    windows = neighbour_windows(labelled.slices(), neighbours_mm) if neighbours_mm else None
    labels = Labels(labelled.unhealthy, labelled.patients, windows)
    backend = open_device(device, bundle, threads=threads, engines=False, precision=precision)
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
    at_L = curves[best.L]
    calibration = Calibration(
        w=best.w,
        Cos_w=best.Cos_w,
        logistic=best.logistic,
        M_max=best.M_max,
        conditions=bundle.conditions(encoding, best.L, stride, spacing, precision),
        decision=choice.decision,
        anomaly_map=anomaly_map,
        threshold_rule=threshold_rule,
        neighbours_mm=neighbours_mm,
        flip_tta=flip_tta,
        guided_mm=guided_mm,
        early_stop=choose_stop(at_L, labels, best, choice.decision),
        plausibility=fit_plausibility(at_L.MSE_0, labels),
        peaks=peak_report(at_L, best.w, labels),
        warnings=failures(at_L, choice, labels),
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
    name = preset or _preset_name(encoding, stride, anomaly_map, precision)
    replaced = bundle.calibrations.get(name)
    write_calibration(bundle, name, calibration, is_default)
    for line in report(choice, calibration, labels):
        click.echo(line)
    for line in calibration.warnings:
        click.echo(f"warning: {line}", err=True)
    instead = f", in place of {replaced.conditions}" if replaced else ""
    click.echo(f"written to {path} as preset {name} ({calibration.conditions}){instead}")


def _preset_name(encoding: str, stride: int, anomaly_map: str, precision: str) -> str:
    parts = [encoding if encoding != "ddim" else "", "exact" if stride == 1 else "fast",
             anomaly_map if anomaly_map != "aggregate" else "",
             precision if precision in LOWERED else ""]  # fmt: skip
    return "-".join(part for part in parts if part)


def _lengths(text: str | None, furthest: int, T: int) -> tuple[int, ...]:
    if text is None:
        return (*range(min(200, furthest), furthest, 100), furthest)
    lengths = tuple(int(number) for number in _numbers(text, "--length", timesteps=True))
    if max(lengths) > T:
        raise AnofpdmError(f"--length {text}: the schedule has {T} timesteps: give at most that")
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
