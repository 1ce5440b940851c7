"""What else could run the default network on a CPU, and why it does not: ``python
benchmarks/tried.py``

Every variant is timed in turn with the shipped graph, on one thread, in processor time (which
others on the same core take no part in); judge by the ratios. Beside them stands what a bundle's
network must hold to replace the shipped one: :data:`anofpdm.export.parity.FP16_TOLERANCE`. With
``--slices`` lesions are looked for as well, by the shipped graph and by what exceeds the tolerance.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from lesions import lesions_found, with_lesions
from machine import machine, table
from quantised import noised
from tried_variants import SHIPPED, SLOTS, VARIANTS, SlicePosition, Variant

from anofpdm.export.parity import FP16_TOLERANCE, Trial, compare, observe
from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.util.files import write_json

_FEWEST_ROUNDS = 25


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--rounds", type=click.IntRange(min=1), default=_FEWEST_ROUNDS, show_default=True)
@click.option("--slices", type=click.Path(path_type=Path), help="Prepared slices with lesions.")
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=8, show_default=True, help="Use every k-th slice only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "tried.json")  # fmt: skip
@reports_errors
def main(
    bundle: Path, rounds: int, slices: Path | None, split: str, every: int, json_path: Path
) -> None:
    opened = open_bundle(bundle)
    labelled = with_lesions(slices, opened, split, every) if slices else None
    with tempfile.TemporaryDirectory() as folder:
        denoisers, reasons = made(SlicePosition(opened, Path(folder)), VARIANTS)
        rows = measured(opened, denoisers, VARIANTS, rounds)
        for name, row in rows.items() if labelled else ():
            if name != SHIPPED and not row["beyond"]:
                continue
            found = lesions_found(opened, denoisers[name], labelled)
            row["lesions"] = {key: found[key] for key in ("dice", "auprc")}
            click.echo(f"{name}: {row['lesions']}", err=True)
    results = [
        {"variant": name, **rows.get(name, {"reason": reasons.get(name)})} for name in VARIANTS
    ]
    about = {**machine("onnx", "onnxslim", "openvino"), "threads": 1}
    settings = {"bundle": opened.manifest.name, "rounds": rounds, "split": split, "every": every,
                "slices": len(labelled) if labelled else None}  # fmt: skip
    write_json(json_path, {"machine": about, **settings, "rows": results})
    click.echo(f"{about}\n")
    if labelled:
        click.echo(f"Lesions: {len(labelled)} unhealthy slices of the {split} split.\n")
    click.echo(table(HEAD, [line(result) for result in results]))


def made(
    place: SlicePosition, variants: Mapping[str, Variant]
) -> tuple[dict[str, Denoiser], dict[str, str]]:
    """The variants that can be made and run, and why the others cannot."""
    denoisers, reasons = {}, {}
    for name, variant in variants.items():
        try:
            denoiser = variant.make(place)
            denoiser(*sample(place.bundle, variant.batch))
        except Exception as error:  # of any package
            reason = str(error).replace(f"{place.folder}/", "").strip()
            reasons[name] = reason.partition("\n")[0] or type(error).__name__
        else:
            denoisers[name] = denoiser
        click.echo(f"{name}: {reasons.get(name, 'made')}", err=True)
    return denoisers, reasons


def sample(bundle: Bundle, batch: int) -> tuple[Any, Any]:
    """Noisy phantoms at visited timesteps far apart, and these."""
    trial = Trial.of(bundle)
    visited = trial.recipe.process.timesteps
    t = visited[np.linspace(0, len(visited) - 1, batch).astype(int)]
    noisy = [noised(trial.x0[:1], trial.recipe.process, int(one)) for one in t]
    return np.concatenate(noisy), t


def measured(
    bundle: Bundle, denoisers: Mapping[str, Denoiser], variants: Mapping[str, Variant], rounds: int
) -> dict[str, dict[str, Any]]:
    """Times and parity of each, as JSON holds them; ratios are to the shipped one in the same
    round."""
    samples = {name: sample(bundle, variants[name].batch) for name in denoisers}
    seconds: dict[str, list[float]] = {name: [] for name in denoisers}
    for _ in range(rounds):
        for name, denoiser in denoisers.items():
            began = time.process_time()
            denoiser(*samples[name])
            seconds[name].append((time.process_time() - began) / variants[name].batch)
    trial = Trial.of(bundle)
    reference = observe(NumpyBackend(OnnxDenoiser(bundle.network, 1), SLOTS), trial)
    rows = {}
    for name, denoiser in denoisers.items():
        parity = compare(reference, NumpyBackend(denoiser, variants[name].batch), trial)
        rows[name] = {
            "batch": variants[name].batch,
            "ms": quartiles(1e3 * np.array(seconds[name])),
            "ratio": quartiles(np.array(seconds[name]) / np.array(seconds[SHIPPED])),
            "parity": asdict(parity),
            "beyond": parity.beyond(FP16_TOLERANCE),
            "nodes": dict(sorted(getattr(denoiser, "nodes", {}).items())),
        }
        click.echo(f"{name}: {rows[name]['ratio'][1]:.3f}, {parity}", err=True)
    return rows


def quartiles(values: np.ndarray) -> list[float]:
    """First, median, third."""
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])]


HEAD = ["variant", "ms a slice and step [quartiles]", "time ratio [quartiles]", "eps", "M_t", "H",
        "t_e", "mask Dice", "within the tolerance", "Dice, AUPRC of lesions",
        "convolutions"]  # fmt: skip


def line(result: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    if "reason" in result:
        reason = str(result["reason"]).replace("|", "/")
        return [result["variant"], f"not made: {reason}", *["-"] * (len(HEAD) - 2)]
    parity, lesions = result["parity"], result.get("lesions")
    return [
        result["variant"],
        _spread(result["ms"], 1),
        _spread(result["ratio"], 3),
        *(f"{parity[name]:.1e}" for name in ("eps", "M_t", "H")),
        f"{parity['t_e']:.0%}",
        f"{parity['dice']:.4f}",
        "no" if result["beyond"] else "yes",
        f"{lesions['dice']:.3f}, {lesions['auprc']:.3f}" if lesions else "-",
        ", ".join(f"{n} {kind}" for kind, n in result["nodes"].items() if "Conv" in kind) or "-",
    ]


def _spread(quartiles: list[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in quartiles)
    return f"{middle} [{low}, {high}]"


if __name__ == "__main__":
    main()
