"""How commands end."""

import os
import signal
import threading

import click
import pytest
from click.testing import CliRunner

from anofpdm.runtime.cli.arguments import OneLineCommand, reports_errors
from anofpdm.runtime.errors import VolumeError


def ending(body):
    return CliRunner().invoke(click.command(cls=OneLineCommand)(reports_errors(body)), [])


def raised(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (VolumeError("a\nvolume"), 2, "error: a volume\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (
            click.UsageError("no such thing."),
            2,
            "error: no such thing (--help lists the options)\n",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line):
    result = ending(raised(error))
    assert (result.exit_code, result.output) == (code, line)


def test_sigterm_ends_as_ctrl_c_does_and_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    result = ending(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (result.exit_code, result.output) == (130, "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_may_run_in_another_thread_where_signals_cannot_be_caught():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(reports_errors(lambda: None)()))
    thread.start()
    thread.join()
    assert codes == [None]
