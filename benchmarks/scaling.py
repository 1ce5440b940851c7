"""Cost against slices, L, pixels and threads, and memory against L and volumes:
``python benchmarks/scaling.py``.

Seconds are of the default model, for pixels of networks of its layout with random weights; every
point is the median of repetitions, all points in turn in every round, so that whatever else the
machine does meets all of them. Memory is what ``python benchmarks/memory.py`` found. With the
points goes the exponent of a power law: 1 is in proportion, 0 does not depend on it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from graph import quartiles
from machine import machine, table
from networks import randomised
from plots import save
from processes import with_process
from scaling_figure import draw

from anofpdm.export.both_labels import BothLabels
from anofpdm.export.onnx_file import export_onnx
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import OutputError, OptionsError
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import check_folder, write_json
from anofpdm.train.config import UNetConfig

_RESULTS = Path(__file__).with_name("results")
_LEAST_SLOTS = 4
# Enough for a network to find its fastest way to share a batch.
_FIRST_CALLS = 10


@dataclass(frozen=True)
class Sizes:
    """How large things are made: ``slices``, in fillings of the row of slots; ``L``, of which
    every ``stride``-th timestep is visited; ``sides``, of a slice, in pixels."""

    slices: tuple[int, ...]
    L: tuple[int, ...]
    sides: tuple[int, ...]
    stride: int = 20


FULL = Sizes((1, 2, 4, 8), (100, 200, 300, 400, 500, 600), (64, 128, 192, 256))
QUICK = Sizes((1, 2), (40, 80), (64, 128))


@dataclass(frozen=True)
class Axis:
    """``what`` grows; ``label``: with what stays; ``expected``: the exponent of perfect scaling."""

    what: str
    label: str
    unit: str
    expected: int


@dataclass(frozen=True)
class Point:
    """Slices to be analysed, as one point of a curve at ``size``."""

    axis: Axis
    size: int
    segmenter: Segmenter
    slices: Sequence[Slice]

    def call(self) -> None:
        """The network alone, once, on a full batch."""
        x_t = np.stack([one.x0 for one in self.slices[: self.segmenter.backend.slots]])
        self.segmenter.backend.denoiser(x_t, np.ones(len(x_t), np.int64))

    def seconds(self) -> float:
        """What it takes, once the threads of the network before have gone to sleep."""
        self.call()
        started = perf_counter()
        for _ in self.segmenter.segment_slices(self.slices):
            pass
        return perf_counter() - started


@click.command()
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", type=click.IntRange(min=1), help="At most.  [default: all cores]")
@click.option("--memory", default=_RESULTS / "memory.json", type=click.Path(path_type=Path),
              help="What memory.py found.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), default=_RESULTS,
              help="Folder for scaling.json and scaling.png.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Few and small points, to try this; with -o FOLDER.")
@reports_errors
def main(rounds: int, threads: int | None, memory: Path, output: Path, quick: bool) -> None:
    if quick and output == _RESULTS:
        raise OptionsError("--quick is no result: name a folder with -o")
    check_folder(output)
    remembered = read_memory(memory)
    most = threads or usable_cores()
    slots = max(_LEAST_SLOTS, most)
    bundle = open_bundle(DEFAULT)
    with tempfile.TemporaryDirectory() as temporary:
        points = list(planned(bundle, QUICK if quick else FULL, most, slots, Path(temporary)))
        curves = as_curves(points, measured(points, rounds))
    about = {"bundle": bundle.manifest.name, "quick": quick, "rounds": rounds, "threads": most,
             "slots": slots}  # fmt: skip
    found = {
        "machine": machine("torch", "onnx", "matplotlib"),
        **about,
        "memory_machine": remembered["machine"],
        "curves": [*curves, *memory_curves(remembered)],
    }
    click.echo(table(HEAD, [line(curve) for curve in found["curves"]]))
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "scaling.json", found)
    save(draw(found["curves"]), output / "scaling.png")


def planned(
    bundle: Bundle, sizes: Sizes, threads: int, slots: int, folder: Path
) -> Iterator[Point]:
    """All points; networks of other sizes are exported to ``folder``, which must stay."""
    networks = {count: OnnxDenoiser(bundle.network, count) for count in thread_counts(threads)}
    side, stride = bundle.manifest.grid.size, sizes.stride
    network, short = networks[threads], sizes.L[0]
    steps = f"{len(range(0, short, stride))} steps"
    square, held = f"{side} x {side} pixels", f"{threads} thread{'s' if threads > 1 else ''}"

    axis = Axis("slices", f"{steps}, {square}, {held}", "s", 1)
    for times in sizes.slices:
        yield point(axis, times * slots, bundle, network, slots, times * slots, short, stride)
    axis = Axis("L", f"stride {stride}, {slots} slices of {square}, {held}", "s", 1)
    for L in sizes.L:
        yield point(axis, L, bundle, network, slots, slots, L, stride)
    axis = Axis("pixels", f"{slots} slices, one step, {held}, random weights", "s", 1)
    for other in sizes.sides:
        file = exported(bundle.manifest.architecture, other, folder)
        resized = with_side(bundle, other)
        yield point(axis, other**2, resized, OnnxDenoiser(file, threads), slots, slots, 1, 1)
    axis = Axis("threads", f"{slots} slices, {steps}, {square}", "s", -1)
    for count, one in networks.items():
        yield point(axis, count, bundle, one, slots, slots, short, stride)


def point(
    axis: Axis,
    size: int,
    bundle: Bundle,
    network: Denoiser,
    slots: int,
    slices: int,
    L: int,
    stride: int,
) -> Point:
    """Phantoms that all go to L."""
    manifest = bundle.manifest
    segmenter = Segmenter(with_process(bundle, "ddim", L, stride), NumpyBackend(network, slots))
    phantoms = phantom_slices(slices, len(manifest.modalities), manifest.grid.size)
    return Point(axis, size, segmenter, [Slice(i, x0) for i, x0 in enumerate(phantoms)])


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return sorted({most, *(2**i for i in range(most.bit_length()))} - {0})


def with_side(bundle: Bundle, side: int) -> Bundle:
    """The bundle on slices of other pixels, of the same millimetres."""
    grid = bundle.manifest.grid
    finer = replace(grid, size=side, pixel_mm=grid.pixel_mm * grid.size / side)
    return replace(bundle, manifest=replace(bundle.manifest, grid=finer))


def exported(architecture: Mapping[str, Any], side: int, folder: Path) -> Path:
    """A network of this layout with random weights, as ONNX."""
    path = folder / f"unet{side}.onnx"
    export_onnx(BothLabels(randomised(at_side(architecture, side)), "fp32"), path)
    return path


def at_side(architecture: Mapping[str, Any], side: int) -> UNetConfig:
    """The layout for slices of ``side`` pixels; attention stays as deep in the network."""
    listed: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in architecture.items()
    }
    config = UNetConfig(**listed)
    deep = tuple(pixels * side // config.image_size for pixels in config.attention_resolutions)
    return replace(config, image_size=side, attention_resolutions=deep)


def measured(points: Sequence[Point], rounds: int) -> list[list[float]]:
    """Seconds of each point, all points in turn in every round; what is done for the first time
    takes longer, so that one round before is not counted."""
    for one in {id(point.segmenter.backend.denoiser): point for point in points}.values():
        for _ in range(_FIRST_CALLS):
            one.call()
    seconds: list[list[float]] = [[] for _ in points]
    shown = ProgressLine("rounds")
    for done in range(rounds + 1):
        for times, one in zip(seconds, points, strict=True):
            times.append(one.seconds())
        shown(done, rounds)
    return [times[1:] for times in seconds]


def as_curves(points: Sequence[Point], seconds: Sequence[list[float]]) -> list[dict[str, Any]]:
    """A curve for each axis: quartiles of the cost at each size."""
    costs: dict[Axis, dict[int, list[float]]] = {}
    for one, times in zip(points, seconds, strict=True):
        costs.setdefault(one.axis, {})[one.size] = quartiles(np.array(times))
    return [curve(axis, found) for axis, found in costs.items()]


def curve(axis: Axis, costs: Mapping[int, list[float]]) -> dict[str, Any]:
    """``costs``: first quartile, median, third, by size."""
    return {
        "what": axis.what,
        "label": axis.label,
        "unit": axis.unit,
        "expected": axis.expected,
        "exponent": exponent(list(costs), [cost[1] for cost in costs.values()]),
        "points": [{"size": size, "cost": cost} for size, cost in costs.items()],
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Of the power law that fits best, by least squares of logarithms; None for a single point."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def read_memory(path: Path) -> dict[str, Any]:
    """What memory.py found.

    Raises
    ------
    OutputError
        If it is not there.
    """
    if not path.is_file():
        raise OutputError(f"{path} is not there: run 'python benchmarks/memory.py --json {path}'")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def memory_curves(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Peaks against L, for one volume, and against volumes, for the smallest L, in DDIM."""
    rows = [row for row in found["rows"] if row["encoding"] == "ddim"]
    least = min(row["L"] for row in rows)
    one = {row["L"]: 3 * [row["peak_mib"]] for row in rows if row["volumes"] == 1}
    many = {row["volumes"]: 3 * [row["peak_mib"]] for row in rows if row["L"] == least}
    stride = f"stride {found['stride']}"
    return [
        curve(Axis("L", f"one volume, {stride}", "MiB", 0), one),
        curve(Axis("volumes", f"L = {least}, {stride}", "MiB", 0), many),
    ]


HEAD = ["cost", "against", "of", "smallest", "largest", "size ratio", "cost ratio", "exponent",
        "perfect"]  # fmt: skip


def line(found: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    first, last = found["points"][0], found["points"][-1]
    fitted = found["exponent"]
    return [
        "seconds" if found["unit"] == "s" else "peak memory",
        found["what"],
        found["label"],
        _cost(first, found["unit"]),
        _cost(last, found["unit"]),
        f"{last['size'] / first['size']:.3g}",
        f"{last['cost'][1] / first['cost'][1]:.3g}",
        "one point only" if fitted is None else f"{fitted:.2f}",
        str(found["expected"]),
    ]


def _cost(point: Mapping[str, Any], unit: str) -> str:
    low, middle, high = point["cost"]
    spread = f" [{low:.3g}, {high:.3g}]" if unit == "s" else ""
    return f"{point['size']}: {middle:.3g} {unit}{spread}"


if __name__ == "__main__":
    main()
