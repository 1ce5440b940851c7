"""What TensorRT had to say: its last errors, in one line. ``trt``: the module that is used."""

from __future__ import annotations

from collections import deque
from types import ModuleType
from typing import Any

_LONGEST = 200


def new_log(trt: ModuleType) -> Any:
    """A log that keeps the last errors, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=2)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(brief(message))

    return Log()


def said(log: Any) -> str:
    """The last errors of a log, in one line."""
    return "; ".join(log.errors)


def brief(text: str) -> str:
    """A text in one line that is not too long."""
    line = " ".join(text.split()) or "no reason given"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
