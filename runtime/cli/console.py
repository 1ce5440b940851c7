"""What a command prints while it runs: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import click

from anofpdm import __version__

from ..backends.base import Backend
from ..bundle.bundle import Bundle
from ..errors import printable
from ..segmenter import Segmenter
from .batch import Row
from .outputs import Outputs


def show_device(asked: str, backend: Backend) -> None:
    """Say on stderr what ``auto`` took, and why nothing faster."""
    if asked == "auto":
        say(f"device: {backend.device}")


def say(text: str) -> None:
    """A line on stderr, after the progress that may stand there."""
    ProgressLine.end()
    click.echo(printable(text), err=True)


class ProgressLine:
    """A line on stderr that is rewritten in place on a terminal; nothing in a pipe.

    Parameters
    ----------
    what : the things that are counted
    steps : timesteps that one of them takes, to be shown as well
    """

    _open = False

    def __init__(self, what: str, steps: int | None = None) -> None:
        self._what, self._steps, self._started = what, steps, time.monotonic()
        self._shown = sys.stderr.isatty()
        if self._shown:
            click.echo(f"{what} ...", nl=False, err=True)
            ProgressLine._open = True

    def __call__(self, done: int, total: int, more: str = "") -> None:
        """Show that ``done`` of ``total`` are done, the time left, and what else is known."""
        if not self._shown:
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


_ENGINES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "openvino")


def version_line(bundle: Bundle) -> str:
    """``anofpdm 0.1.0, model NAME (its fingerprint), onnxruntime 1.32.0``: a line that tells two
    installations apart."""
    engines = ", ".join(f"{name} {found}" for name in _ENGINES if (found := _version(name)))
    return (
        f"anofpdm {__version__}, model {bundle.manifest.name} (sha256 {bundle.sha256[:16]}), "
        f"{engines or 'no engine: install anofpdm[cpu] or anofpdm[gpu]'}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
