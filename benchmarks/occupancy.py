"""The share of slots in use over a folder's run: ``python benchmarks/occupancy.py [FOLDER]``.

Slices share the network's batch as a row of slots; where one leaves, the next one enters, of the
same volume or of another. What is lost is what stays empty at the end of the run, when no slice
waits any more. If every volume ran alone it would be lost at the end of each: that is computed by
the row itself, around a network that costs nothing. Without a folder, some are made of the example
volume. It fails where less than 95 % of the slots were in use.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from machine import machine, table
from numpy.typing import NDArray

from anofpdm.runtime.backends.base import Denoiser, Found, Recipe
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend, NumpySlots
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.backends.scheduler import Cancelled, never, run
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.batch import Batch
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.cli.discovery import Case, find_cases
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.step import Step
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.volume.nifti import load_image

Float32 = NDArray[np.float32]
LEAST_SHARE = 0.95
_EXAMPLE = Path(__file__).parents[1] / "examples" / "simulated_flair.nii.gz"
# First level, levels, whether left and right are swapped: counts that no row of slots divides.
_CROPS = [
    (30, 9, False), (12, 14, True), (40, 11, False), (22, 7, True), (36, 13, True), (15, 10, False),
    (25, 15, False), (45, 6, True),
]  # fmt: skip


@dataclass(frozen=True)
class Occupancy:
    """What a run made of its slots.

    ``volumes``, ``slices``: that went through; ``visited``: timesteps of a slice that goes to the
    end; ``steps``: that slices took; ``left_early``: slices that took fewer than ``visited``;
    ``calls``: of the network; ``slots``: in its batch; ``in_vain``: samples that were computed for
    slices which had left by then (DDPM only). Shares of slots in use: ``share``, of the whole run;
    ``share_waiting``, of the calls while slices waited, None where none ever did;
    ``share_alone``, if each volume ran alone. ``saved``: share of steps that slices did not take.
    """

    volumes: int
    slices: int
    visited: int
    steps: int
    left_early: int
    calls: int
    slots: int
    in_vain: int
    share: float
    share_waiting: float | None
    share_alone: float
    saved: float


@dataclass
class Counted:
    """A network; ``batches``: how many samples each of its calls had."""

    denoiser: Denoiser
    batches: list[int] = field(default_factory=list)

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.backends.base.Denoiser`."""
        self.batches.append(len(x_t))
        return self.denoiser(x_t, t)


class Watched(NumpyBackend):
    """A backend that is looked at while it works.

    ``entered``: (volume, key) of slices as they entered; ``steps``: how many each has taken;
    ``calls_waiting``: calls of the network before the last one entered.
    """

    def __init__(self, host: NumpyBackend) -> None:
        self.counted = Counted(host.denoiser)
        super().__init__(self.counted, host.slots, host.device, host.precision)
        self.entered: list[tuple[int, int]] = []
        self.steps: dict[tuple[int, int], int] = {}
        self.calls_waiting = 0

    def find(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Found:
        """See :class:`anofpdm.runtime.backends.base.Backend`."""
        for item, curves in super().run(recipe, self._entering(slices), cancelled):
            self.steps[item.volume, item.key] = len(curves.M)
            yield item, curves

    def _entering(self, slices: Iterable[Slice | None]) -> Iterator[Slice | None]:
        for item in slices:
            if item is not None:
                self.entered.append((item.volume, item.key))
                self.calls_waiting = len(self.counted.batches)
            yield item

    def occupancy(self, process: Process) -> Occupancy:
        """What came of the slots.

        Raises
        ------
        VolumeError
            If no slice went through.
        """
        batches, slots = self.counted.batches, self.slots
        if not batches:
            raise VolumeError("no case could be segmented: nothing was measured")
        visited, steps = len(process.timesteps), sum(self.steps.values())
        volumes = [
            [self.steps[one] for one in slices]
            for _, slices in itertools.groupby(self.entered, key=lambda one: one[0])
        ]
        alone = [batch for volume in volumes for batch in simulated(process, slots, volume)]
        waiting = batches[: self.calls_waiting]
        return Occupancy(
            volumes=len(volumes),
            slices=len(self.entered),
            visited=visited,
            steps=steps,
            left_early=sum(taken < visited for taken in self.steps.values()),
            calls=len(batches),
            slots=slots,
            in_vain=sum(batches) - steps,
            share=share_in_use(batches, slots),
            share_waiting=share_in_use(waiting, slots) if waiting else None,
            share_alone=share_in_use(alone, slots),
            saved=1 - steps / (visited * len(self.entered)),
        )


def share_in_use(batches: Sequence[int], slots: int) -> float:
    """Of all slots in these calls of the network."""
    return sum(batches) / (slots * len(batches))


@dataclass
class _Leaves:
    """A accumulator whose slice leaves after so many steps."""

    steps: int

    def add(self, step: Step, UGP: Float32) -> bool:
        """See :class:`anofpdm.runtime.backends.cpu.numpy_loop.Accumulator`."""
        self.steps -= 1
        return self.steps == 0


def simulated(process: Process, slots: int, steps: Sequence[int]) -> list[int]:
    """The batch of each call if slices enter in this order and leave after so many ``steps``: by
    the real row, with slices of one pixel and a network that costs nothing."""
    counted = Counted(lambda x_t, t: (np.zeros_like(x_t), np.zeros_like(x_t)))
    leaving, x0 = iter(steps), np.zeros((1, 1, 1), np.float32)
    row = NumpySlots(process, counted, lambda: _Leaves(next(leaving)), slots=slots)
    for _ in run(row, (Slice(i, x0) for i in range(len(steps)))):
        pass
    return counted.batches


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--preset", default="fastest", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Take only so many cases.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--slots", type=click.IntRange(min=1), help="[default: as the command has them]")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    folder: Path | None,
    preset: str,
    limit: int | None,
    threads: int | None,
    slots: int | None,
    json_path: Path | None,
) -> None:
    setup = Options(preset=preset)
    loaded = Segmenter.load(options=options, device="cpu", threads=threads, slots=slots)
    assert isinstance(loaded.backend, NumpyBackend)
    bundle, watched = loaded.bundle, Watched(loaded.backend)
    segmenter = Segmenter(bundle, watched, options=options)
    with tempfile.TemporaryDirectory() as temporary:
        taken = folder or made_up(Path(temporary, "cases"))
        cases = find_cases(taken, bundle.manifest.modalities)[:limit]
        segmented = segment(segmenter, cases, Path(temporary, "results"))
    found = watched.occupancy(segmenter.plan.process)
    about = {"bundle": bundle.manifest.name, "preset": segmenter.plan.preset,
             "threads": threads or usable_cores(),
             "made_up": folder is None, "cases": len(cases), "segmented": segmented}  # fmt: skip
    click.echo(table(["", preset], lines(found, len(cases), segmented)))
    if json_path:
        write_json(json_path, {"machine": machine(), **about, **asdict(found)})
    if found.share < LEAST_SHARE:
        raise click.ClickException(
            f"{found.share:.1%} of the slots were in use, less than {LEAST_SHARE:.0%}: "
            f"{found.slices} slices in {found.slots} slots"
        )


def segment(segmenter: Segmenter, cases: Sequence[Case], output: Path) -> int:
    """Run over the cases as the command does; how many went well."""
    shown = ProgressLine("slices")
    rows = Batch(segmenter, cases, output).run(progress=lambda _, done, total: shown(done, total))
    ProgressLine.end()
    return sum(row["status"] == "ok" for row in rows)


def made_up(folder: Path) -> Path:
    """Cases of several thicknesses, cut out of the example volume."""
    folder.mkdir()
    image = load_image(_EXAMPLE)
    for i, (first, levels, swapped) in enumerate(_CROPS):
        part = image.slicer[:, :, first : first + levels]
        values = np.asarray(part.dataobj)
        turned = values[::-1] if swapped else values
        nib.save(nib.Nifti1Image(turned, part.affine), folder / f"case{i}.nii.gz")
    return folder


def lines(found: Occupancy, cases: int, segmented: int) -> list[list[str]]:
    """The table."""
    waiting = "none waited" if found.share_waiting is None else f"{found.share_waiting:.1%}"
    early = f"{found.saved:.1%} ({found.left_early} slices left early)"
    return [
        ["cases", f"{cases}, {segmented} segmented"],
        ["slices", str(found.slices)],
        ["steps", f"{found.steps}, at most {found.visited} a slice"],
        ["network calls", f"{found.calls} of {found.slots} slots"],
        ["slots in use", f"{found.share:.1%}"],
        ["slots in use while slices waited", waiting],
        ["slots in use if each volume ran alone", f"{found.share_alone:.1%}"],
        ["steps saved by slices that left early", early],
        ["samples computed in vain", str(found.in_vain)],
    ]


if __name__ == "__main__":
    main()
