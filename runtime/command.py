"""What commands share: options, how they end, and how they show progress."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec

import click

from .errors import AnofpdmError

P = ParamSpec("P")
INTERRUPTED = 130
SEED = click.IntRange(0, 2**31 - 1)

bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help="[default: the embedded one]"
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Of the noise; 0 to 2147483647."
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")


def reports_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Turn an :class:`AnofpdmError` into one line on stderr and exit code 2."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        # nibabel reports faults of headers that it mends; what cannot be mended, we report.
        logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
        try:
            body(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (AnofpdmError, OSError) as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            _interrupted()

    return wrapped


def _interrupted() -> NoReturn:
    click.echo("interrupted", err=True)
    sys.exit(INTERRUPTED)


class ProgressLine:
    """A line on stderr that is rewritten in place on a terminal; nothing in a pipe."""

    def __init__(self, what: str) -> None:
        self._what, self._started = what, time.monotonic()
        self._shown = sys.stderr.isatty()
        if self._shown:
            click.echo(f"{what} ...", nl=False, err=True)

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done, and the time left."""
        if not self._shown:
            return
        left = (time.monotonic() - self._started) / max(done, 1) * (total - done)
        text = f"{self._what} {done}/{total}, {left:.0f} s left"
        click.echo(f"\r{text:<40}", nl=done == total, err=True)
