"""Growth of time and memory, and use of the network's batch: ``python benchmarks/scaling.py PART``.

``time``: seconds against slices, L and threads, medians of rounds in which every point takes its
turn, with the exponent of a power law (1: in proportion); ``memory``: peaks against L and volumes,
and for volumes of 512 x 512 x 400 voxels of which four levels show a head, each in a new process;
``slots``: the share of the batch's slots in use over a folder of cases, or parts of the example.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import common
import nibabel as nib
import numpy as np

from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import reports_errors, threads_option
from anofpdm.runtime.cli.batch import Batch
from anofpdm.runtime.cli.discovery import find_cases
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.volume.nifti import load_image

BATCHES, LENGTHS, STRIDE, FIRST_CALLS = (1, 2, 4, 8), (100, 200, 300, 400, 500, 600), 20, 3
PHANTOMS = [("ddim", 100, 1), ("ddim", 300, 1), ("ddim", 600, 1), ("ddpm", 600, 1),
            ("ddim", 100, 4), ("ddim", 100, 16)]  # fmt: skip
LARGE = [("int16", ".nii.gz"), ("int16", ".nii"), ("float32", ".nii.gz"), ("float32", ".nii")]
LARGE_SHAPE, LARGE_MIB, MEMORY_STRIDE, LEVELS, SPREAD_MIB = (512, 512, 400), 2048, 4, 8, 16
LEAST_SHARE = 0.95
output_option = click.option("-o", "--output", type=common.PATH, default=common.RESULTS)


@click.group()
def main():
    """Time, memory, slots in use; results are written to a folder, --output."""


@dataclass(frozen=True)
class Point:
    """The analysis of phantoms that all go to L, as a point of a curve."""

    what: str  # the quantity that grows: slices, L or threads
    label: str  # what stays the same
    size: int  # of that quantity
    segmenter: Segmenter  # with so many threads and slots
    slices: list[Slice]  # phantoms


@main.command("time")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@threads_option
@output_option
@reports_errors
def time(rounds, threads, output):
    """Seconds against slices, L and threads."""
    threads, bundle = threads or usable_cores(), open_bundle(DEFAULT)
    curves = measure(plan(bundle, threads, max(4, threads)), rounds)
    about = {"machine": common.machine(), "bundle": bundle.manifest.name, "rounds": rounds}
    write_json(output / "scaling.json", {**about, "threads": threads, "curves": curves})
    click.echo(common.table(HEAD, [line(curve) for curve in curves]))


def plan(bundle: Bundle, threads: int, slots: int) -> list[Point]:
    """All points."""
    manifest = bundle.manifest
    counts = sorted({threads, *(2**i for i in range(threads.bit_length()))} - {0})
    networks = {count: OnnxDenoiser(bundle.network, count) for count in counts}

    def point(what: str, label: str, size: int, threads: int, slices: int, L: int) -> Point:
        timesteps = common.with_process(bundle, "ddim", L, STRIDE)
        segmenter = Segmenter(timesteps, NumpyBackend(networks[threads], slots))
        phantoms = phantom_slices(slices, len(manifest.modalities), manifest.grid.size)
        return Point(what, label, size, segmenter, [Slice(i, x) for i, x in enumerate(phantoms)])

    short, cores, batch = LENGTHS[0], f"{threads} threads", f"{slots} slices"
    sizes = [n * slots for n in BATCHES]
    return [
        *(point("slices", f"L = {short}, {cores}", n, threads, n, short) for n in sizes),
        *(point("L", f"{batch}, {cores}", L, threads, slots, L) for L in LENGTHS),
        *(point("threads", f"{batch}, L = {short}", n, n, slots, short) for n in counts),
    ]


def measure(points: list[Point], rounds: int) -> list[dict[str, Any]]:
    """A curve for each quantity: quartiles of the seconds at each size, the exponent that fits and
    that of perfect scaling. The first calls of a network are slower, and not counted."""
    for point in points:
        x_t = np.stack([item.x0 for item in point.slices[: point.segmenter.backend.slots]])
        for _ in range(FIRST_CALLS):
            point.segmenter.backend.denoiser(x_t, np.ones(len(x_t), np.int64))
    curves: dict[str, dict[str, Any]] = {}
    work = [lambda p=p: list(p.segmenter.segment_slices(p.slices)) for p in points]
    for point, times in zip(points, common.in_turn(work, rounds), strict=True):
        expected = -1 if point.what == "threads" else 1
        new = {"what": point.what, "label": point.label, "expected": expected, "points": []}
        place = {"size": point.size, "cost": common.quartiles(times)}
        curves.setdefault(point.what, new)["points"].append(place)
    for curve in curves.values():
        medians = {place["size"]: place["cost"][1] for place in curve["points"]}
        curve["exponent"] = exponent(list(medians), list(medians.values()))
    return list(curves.values())


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Of the power law that fits best, by least squares of logarithms; None for a single point."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]) if len(sizes) > 1 else None


HEAD = ["seconds against", "of", "smallest", "largest", "size ratio", "cost ratio", "exponent",
        "perfect"]  # fmt: skip


def line(curve: dict[str, Any]) -> list[str]:
    """A row of the table."""
    first, last, fitted = curve["points"][0], curve["points"][-1], curve["exponent"]
    ratios = last["size"] / first["size"], last["cost"][1] / first["cost"][1]
    return [
        curve["what"], curve["label"],
        *("{}: {:.3g} s [{:.3g}, {:.3g}]".format(place["size"], *np.array(place["cost"])[[1, 0, 2]])
          for place in (first, last)), *(f"{ratio:.3g}" for ratio in ratios),
        "one point only" if fitted is None else f"{fitted:.2f}", str(curve["expected"]),
    ]  # fmt: skip


@main.command("memory")
@output_option
@click.option("--phantoms", nargs=3, type=(str, int, int), hidden=True)
@click.option("--volume", hidden=True)
@reports_errors
def memory(output, phantoms, volume):
    """Peak memory; "above" is what came after loading."""
    if phantoms or volume:
        click.echo(json.dumps(memory_of(phantoms, volume)))
        return
    rows, large = [], []
    for encoding, L, volumes in PHANTOMS:
        peaks = common.run_separately(__file__, "memory", "--phantoms", encoding, L, volumes)
        rows.append({"encoding": encoding, "L": L, "volumes": volumes, **peaks})
    with tempfile.TemporaryDirectory() as folder:
        for kind, suffix in LARGE:
            path = enlarged_example(Path(folder, f"head{suffix}"), np.dtype(kind))
            peaks = common.run_separately(__file__, "memory", "--volume", path)
            large.append({"voxels": kind, "file": suffix, **peaks})
    for some in (rows, large):
        click.echo(common.table(list(some[0]), [list(map(str, row.values())) for row in some]))
    about = {"machine": common.machine(), "stride": MEMORY_STRIDE, "levels": LEVELS, "rows": rows}
    write_json(output / "memory.json", {**about, "large_shape": LARGE_SHAPE, "large": large})
    peaks = [row["peak_mib"] for row in rows]
    if max(peaks) - min(peaks) > SPREAD_MIB:
        raise click.ClickException(f"peaks differ by more than {SPREAD_MIB} MiB")
    if max(row["peak_mib"] for row in large) > LARGE_MIB:
        raise click.ClickException(f"a peak is above {LARGE_MIB} MiB")


def memory_of(phantoms: tuple[str, int, int] | None, volume: str | None) -> dict[str, Any]:
    """Peaks of this process: of segmenting a file with the fastest preset, or phantoms (encoding,
    L, volumes), made as they are needed, with every fourth timestep up to L."""
    if phantoms:
        encoding, L, count = phantoms
        bundle = common.with_process(open_bundle(DEFAULT), encoding, L, MEMORY_STRIDE)
        segmenter, affine = Segmenter.load(bundle, device="cpu"), np.diag([1.875, 1.875, 5.0, 1.0])
        slices = (phantom_slices(LEVELS, 1, 128, seed)[:, 0] for seed in range(count))
        images = (nib.Nifti1Image(100 * (np.moveaxis(x, 0, 2) + 1), affine) for x in slices)
    else:
        segmenter = Segmenter.load(options=Options(preset="fastest"), device="cpu")
        images = iter([load_image(Path(volume))])
    before, began, steps = common.peak_mib(), perf_counter(), []
    for result in segmenter.segment_many(images):
        steps = [len(output.M) for output in result.slices]
    peak, seconds = common.peak_mib(), perf_counter() - began
    return {"slices": len(steps), "steps": steps[0], "peak_mib": round(peak),
            "above_mib": round(peak - before), "seconds": round(seconds, 1)}  # fmt: skip


def enlarged_example(path: Path, kind: np.dtype[Any]) -> Path:
    """Four levels of the example volume with more pixels, and air above and below."""
    image, values = load_image(common.EXAMPLE), np.zeros(LARGE_SHAPE, kind)
    x, y = (np.arange(n) * m // n for n, m in zip(LARGE_SHAPE[:2], image.shape[:2], strict=True))
    middle = LARGE_SHAPE[2] // 2
    values[..., middle - 2 : middle + 2] = np.asarray(image.dataobj)[np.ix_(x, y, range(20, 24))]
    nib.save(nib.Nifti1Image(values, np.diag([0.27, 0.33, 0.5, 1.0])), path)
    return path


@main.command("slots")
@click.argument("folder", required=False, type=common.PATH)
@click.option("--preset", default="fastest", show_default=True)
@threads_option
@output_option
@reports_errors
def slots(folder, preset, threads, output):
    """The share of slots in use, which must be 95 %: where a slice leaves, another one enters."""
    options, batches = Options(preset=preset), []
    loaded = Segmenter.load(options=options, device="cpu", threads=threads)
    backend, modalities = loaded.backend, loaded.bundle.manifest.modalities

    def counted(x_t, t):
        batches.append(len(x_t))
        return backend.denoiser(x_t, t)

    counting = NumpyBackend(counted, backend.slots, backend.device, backend.precision)
    segmenter = Segmenter(loaded.bundle, counting, options=options)
    with tempfile.TemporaryDirectory() as temporary:
        cases = find_cases(folder or example_cases(Path(temporary, "cases")), modalities)
        rows = Batch(segmenter, cases, Path(temporary, "results")).run()
    if not batches:
        raise VolumeError("no case could be segmented: nothing was measured")
    segmented, share = sum(row["status"] == "ok" for row in rows), np.mean(batches) / backend.slots
    result = {"preset": preset, "cases": len(cases), "segmented": segmented, "calls": len(batches),
              "slots": backend.slots, "share": float(share)}  # fmt: skip
    write_json(output / "slots.json", {"machine": common.machine(), **result})
    click.echo(common.table(list(result), [[str(value) for value in result.values()]]))
    if share < LEAST_SHARE:
        raise click.ClickException(f"{share:.1%} of the slots were in use, below {LEAST_SHARE:.0%}")


def example_cases(folder: Path) -> Path:
    """Eight parts of the example volume, of numbers of levels that no batch divides."""
    folder.mkdir()
    image = load_image(common.EXAMPLE)
    for i, levels in enumerate((9, 14, 11, 7, 13, 10, 15, 6)):
        nib.save(image.slicer[:, :, 30 - 2 * i : 30 - 2 * i + levels], folder / f"case{i}.nii.gz")
    return folder


if __name__ == "__main__":
    main()
