"""The errors a user can mend. Anything else that is raised is a bug of ours."""

from __future__ import annotations


class AnofpdmError(Exception):
    """What was wrong, where, and what to do about it, in one line, whatever is quoted there."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class VolumeError(AnofpdmError, ValueError):
    """An image that cannot be segmented."""


class BundleError(AnofpdmError, ValueError):
    """A bundle that is missing, altered, or made for something else."""


class SetupError(AnofpdmError, ValueError):
    """A choice at run time that is not possible."""


class DeviceError(AnofpdmError, RuntimeError):
    """A GPU that cannot be used, or that failed."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU with too little free memory."""


class OutputError(AnofpdmError, OSError):
    """A place that cannot be written to."""


class CohortError(AnofpdmError, ValueError):
    """Training, calibration or test data that cannot be used."""


class CheckpointError(AnofpdmError, ValueError):
    """A checkpoint that cannot be loaded or does not fit."""


class MissingExtraError(AnofpdmError, ImportError):
    """A command needs packages that an extra of this distribution installs."""


class EngineError(AnofpdmError, RuntimeError):
    """A TensorRT that cannot be used, or a network that it cannot build an engine from."""


class ParityError(AnofpdmError, ValueError):
    """An exported network that does not compute what the original computes."""


def printable(text: str) -> str:
    """Text that may name files whose bytes are no text."""
    return text.encode(errors="backslashreplace").decode()
