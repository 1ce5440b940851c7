"""What a command prints while it runs: results on stdout, progress and notes on stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anofpdm import __version__

from ..backends.base import Backend
from ..backends.cuda.device import gpu_is_present
from ..bundle.bundle import Bundle
from ..errors import printable

if TYPE_CHECKING:
    from ..segmenter import Segmenter

_ENGINES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "openvino")


def print_line(text: str) -> None:
    """A line on stderr, after the progress that may stand there."""
    ProgressLine.end()
    click.echo(printable(text), err=True)


def print_device(backend: Backend, verbose: bool = False) -> None:
    """The device, and why not a faster one: where a choice matters, with a GPU, or ``verbose``."""
    if verbose or gpu_is_present():
        print_line(f"device: {backend.device}")


def version_line(bundle: Bundle) -> str:
    """``anofpdm 0.1.0, model NAME (its fingerprint), onnxruntime 1.32.0``: a line that tells two
    installations apart."""
    engines = ", ".join(f"{name} {number}" for name in _ENGINES if (number := _version(name)))
    return (
        f"anofpdm {__version__}, model {bundle.manifest.name} (sha256 {bundle.sha256[:16]}), "
        f"{engines or 'no engine: install anofpdm[cpu] or anofpdm[gpu]'}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class ProgressLine:
    """A line on stderr that is rewritten in place on a terminal; nothing in a pipe.

    Parameters
    ----------
    what : the things that are counted
    steps : timesteps of each, to be shown as well
    """

    _open = False

    def __init__(self, what: str, steps: int | None = None) -> None:
        self._what, self._steps, self._started = what, steps, time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        if self._on_terminal:
            click.echo(f"{what} ...", nl=False, err=True)
            ProgressLine._open = True

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """Show that ``done`` of ``total`` are done, the time left, and what else is known."""
        if not self._on_terminal:
            return
        steps = f" (step {done * self._steps} of {total * self._steps})" if self._steps else ""
        text = f"{self._what} {done}/{total}{steps}{', ' if more else ''}{more}"
        if done:
            left = (time.monotonic() - self._started) / done * (total - done)
            text += f", {left:.0f} s left"
        click.echo(f"\r{text:<60}", nl=False, err=True)
        ProgressLine._open = True
        if done == total:
            ProgressLine.end()

    @classmethod
    def end(cls) -> None:
        """Go to a new line, if there is one to leave."""
        if cls._open:
            click.echo(err=True)
        cls._open = False


class Console:
    """What ``anofpdm-infer`` prints: errors only if ``quiet``, the preset and files if ``verbose``.

    Progress begins with the first slice that is done: an error of a volume is one line.
    """

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self._quiet, self._verbose = quiet, verbose and not quiet

    def slice_progress(self, segmenter: "Segmenter") -> Callable[[int, int], None]:
        """To be called with slices done and in all."""
        line: list[ProgressLine] = []

        def progress(done: int, total: int) -> None:
            if not line:
                self._print_plan(segmenter)
                plan = segmenter.plan
                line.append(
                    ProgressLine("slices", None if plan.stop else len(plan.process.timesteps))
                )
            line[0](done, total)

        return (lambda done, total: None) if self._quiet else progress

    def case_progress(self, segmenter: "Segmenter", count: int) -> Callable[[int, int, int], None]:
        """To be called with cases done, slices done, and slices in all that were read so far."""
        line: list[ProgressLine] = []

        def progress(cases: int, done: int, total: int) -> None:
            if not line:
                self._print_plan(segmenter)
                line.append(ProgressLine("cases"))
            line[0](cases, count, f"slices {done}/{total}")

        return (lambda cases, done, total: None) if self._quiet else progress

    def _print_plan(self, segmenter: "Segmenter") -> None:
        print_device(segmenter.backend, self._verbose)
        if self._verbose:
            plan = segmenter.plan
            print_line(version_line(segmenter.bundle))
            print_line(
                f"preset {plan.preset}: {plan.calibration.conditions}; seed {segmenter.seed}"
            )

    def note(self, text: str) -> None:
        """A line on stderr."""
        if not self._quiet:
            print_line(f"note: {text}")

    def result(self, text: str) -> None:
        """A line on stdout."""
        if not self._quiet:
            ProgressLine.end()
            click.echo(printable(text))

    def row(self, row: Mapping[str, str | float | int], kept: bool) -> None:
        """A case of a folder; ``kept``: whether it was done before."""
        if row["status"] != "ok":
            print_line(f"failed: {row['case']}: {row['reason']}")
            return
        if row["notes"] and not kept:
            self.note(f"{row['case']}: {row['notes']}")
        self.result(
            f"{row['case']}: {row['unhealthy_slices']} of {row['slices']} slices unhealthy, "
            f"{row['volume_ml']:.1f} ml marked{', from before' if kept else ''}"
        )

    def written(self, paths: Mapping[str, Path]) -> None:
        """The files of a volume, by kind."""
        if self._verbose:
            for kind, path in paths.items():
                print_line(f"{kind} in {path}")
