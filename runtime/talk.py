"""What is said while ``anofpdm-infer`` runs: results on stdout, all else on stderr."""

from __future__ import annotations

from collections.abc import Callable

import click

from .about import version_line
from .batch import Row
from .command import ProgressLine, say, show_device
from .errors import printable
from .outputs import Outputs
from .segmenter import Segmenter


class Talk:
    """``device``: what was asked for; ``quiet``: errors only; ``verbose``: also what is used and
    written."""

    def __init__(self, device: str, quiet: bool, verbose: bool) -> None:
        self._device = device
        self._quiet, self._verbose = quiet, verbose and not quiet

    def progress(self, segmenter: Segmenter) -> Callable[[int, int], None]:
        """What to call with slices done and in all. With the first one it says what they run on:
        not before, for what is wrong with a volume is said in one line."""
        if self._quiet:
            return lambda done, total: None
        shown: list[ProgressLine] = []

        def show(done: int, total: int) -> None:
            if not shown:
                self._used(segmenter)
                steps = len(segmenter.setup.process.timesteps)
                shown.append(ProgressLine("slices", None if segmenter.setup.stop else steps))
            shown[0](done, total)

        return show

    def cases(self, segmenter: Segmenter, count: int) -> Callable[[int, int, int], None]:
        """Likewise for many cases: to be called with cases and slices done, and slices in all that
        were read so far."""
        if self._quiet:
            return lambda cases, done, total: None
        shown: list[ProgressLine] = []

        def show(cases: int, done: int, total: int) -> None:
            if not shown:
                self._used(segmenter)
                shown.append(ProgressLine("cases"))
            shown[0](cases, count, f"slices {done}/{total}")

        return show

    def _used(self, segmenter: Segmenter) -> None:
        show_device(self._device, segmenter.backend)
        if self._verbose:
            setup = segmenter.setup
            say(version_line(segmenter.bundle))
            say(f"preset {setup.preset}: {setup.calibration.conditions}; seed {segmenter.seed}")

    def note(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def result(self, text: str) -> None:
        if not self._quiet:
            ProgressLine.end()
            click.echo(printable(text))

    def row(self, row: Row, kept: bool) -> None:
        if row["status"] != "ok":
            say(f"failed: {row['case']}: {row['reason']}")
            return
        if row["notes"] and not kept:
            self.note(f"note: {row['case']}: {row['notes']}")
        self.result(
            f"{row['case']}: {row['unhealthy_slices']} of {row['slices']} slices unhealthy, "
            f"{row['volume_ml']:.1f} ml marked{', from before' if kept else ''}"
        )

    def wrote(self, outputs: Outputs) -> None:
        if self._verbose:
            for kind, path in outputs.paths.items():
                say(f"{kind} in {path}")
