"""Options that commands share, and how commands end: one line of error, an exit code."""

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, ParamSpec

import click

from ..errors import AnofpdmError, one_line
from .console import print_line

P = ParamSpec("P")
INTERRUPTED = 130
SEED = click.IntRange(0, 2**31 - 1)
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help="Model folder.  [default: the embedded one]"
)
preset_option = click.option(
    "--preset", metavar="NAME", help="Calibration of the bundle.  [default: the bundle's default]"
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=SEED, metavar="N", help="Seed of the noise."
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME",
    help="cpu; cuda or trt for a GPU (cuda:1 for the second); auto takes the fastest there is.",
)  # fmt: skip
slots_option = click.option(
    "--slots", type=click.IntRange(min=1), metavar="N",
    help="Slices that share a batch: more are faster and take more memory.  [default: 4, or one a "
    "thread; on a GPU 64]",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: all cores]"
)


def reports_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Turn an :class:`AnofpdmError` into one line on stderr and exit code 2, and Ctrl-C or SIGTERM
    into exit code 130, once what was half-written is gone."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        # nibabel reports faults of headers that it corrects; the others are our errors.
        logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
        try:
            with _terminable():
                body(*args, **kwargs)
        except BrokenPipeError:
            raise
        except (AnofpdmError, OSError) as error:
            print_line(f"error: {one_line(error)}")
            sys.exit(2)
        except KeyboardInterrupt:
            print_line("interrupted")
            sys.exit(INTERRUPTED)

    return wrapped


class OneLineCommand(click.Command):
    """A command whose usage errors are one line, and whose help may list options in groups."""

    groups: ClassVar[Mapping[str, Sequence[str]]] = {}  # parameter names by heading

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        **extra: Any,
    ) -> Any:
        standalone = extra.pop("standalone_mode", True)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            return sys.exit(code or 0) if standalone else code
        except click.ClickException as error:
            message = one_line(error.format_message()).rstrip(".")
            print_line(f"error: {message} (--help lists the options)")
            sys.exit(2)
        except click.Abort:
            print_line("interrupted")
            sys.exit(INTERRUPTED)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.groups:
            super().format_options(ctx, formatter)
            return
        # Versions of click name the help option in different ways.
        records = {"help" if "--help" in p.opts else p.name: p.get_help_record(ctx)
                   for p in self.get_params(ctx)}  # fmt: skip
        for heading, names in self.groups.items():
            with formatter.section(heading):
                formatter.write_dl([record for name in names if (record := records.get(name))])


class OneLineGroup(OneLineCommand, click.Group):
    """A group of commands whose usage errors are one line."""


class FilePath(click.Path):
    """A path that is not empty, as a variable that was never set would make it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
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
