"""What all commands share: how they end, and how they show progress."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import click

from .errors import AnofpdmError

P = ParamSpec("P")
INTERRUPTED = 130


def reports_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Turn an :class:`AnofpdmError` into one line on stderr and exit code 2."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            body(*args, **kwargs)
        except AnofpdmError as error:
            click.echo(f"error: {error}", err=True)
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

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done, and the time left."""
        if not self._shown:
            return
        left = (time.monotonic() - self._started) / max(done, 1) * (total - done)
        text = f"\r{self._what} {done}/{total}, {left:.0f} s left "
        click.echo(text, nl=done == total, err=True)
