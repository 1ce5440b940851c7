"""Options that commands share, and how commands end: one line of error, an exit code."""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec

import click

from ..errors import AnofpdmError
from .console import say

P = ParamSpec("P")
INTERRUPTED = 130
SEED = click.IntRange(0, 2**31 - 1)
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help="[default: the embedded one]"
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Of the noise; 0 to 2147483647."
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME",
    help="cpu; cuda or trt for a GPU (cuda:1 for the second); auto takes the fastest there is.",
)  # fmt: skip
slots_option = click.option(
    "--slots", type=click.IntRange(min=1),
    help="Slices that share a batch: for speed and memory.  [default: 4, or one a thread; on a "
    "GPU 64]",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Of the CPU.  [default: all cores]"
)
preset_option = click.option(
    "--preset", help="One of the bundle's calibrations.  [default: the bundle's]"
)


def reports_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Turn an :class:`AnofpdmError` into one line on stderr and exit code 2, and Ctrl-C or SIGTERM
    into exit code 130, once what was half-written is gone."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        # nibabel reports faults of headers that it mends; what cannot be mended, we report.
        logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
        try:
            with _terminable():
                body(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (AnofpdmError, OSError) as error:
            say(f"error: {' '.join(str(error).split())}")
            sys.exit(2)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(INTERRUPTED)

    return wrapped


class _OneLine(click.Command):
    """Says in one line what is wrong with options, as with all else."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        **extra: Any,
    ) -> Any:
        """See :meth:`click.Command.main`."""
        standalone = extra.pop("standalone_mode", True)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            return sys.exit(code or 0) if standalone else code
        except click.ClickException as error:
            said = " ".join(error.format_message().split()).rstrip(".")
            say(f"error: {said} (--help lists the options)")
            sys.exit(2)
        except click.Abort:
            say("interrupted")
            sys.exit(INTERRUPTED)


class OneLineCommand(_OneLine):
    """A command that says in one line what is wrong with its options."""


class OneLineGroup(_OneLine, click.Group):
    """Likewise, with commands of its own."""


class FilePath(click.Path):
    """A path that is not empty, as a variable that was never set would make it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :meth:`click.ParamType.convert`."""
        if value == "":
            self.fail("an empty name", param, ctx)
        return super().convert(value, param, ctx)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
