"""User errors, which say what to correct. Anything else that is raised is a bug of ours."""

QUOTED = 200  # characters of a library's error


def one_line(reason: object, longest: int | None = None) -> str:
    """An error or a text in one line, cut at ``longest``; of an error without words, its type."""
    wordless = "no reason given" if isinstance(reason, str) else type(reason).__name__
    line = " ".join(str(reason).split()) or wordless
    return line if longest is None or len(line) <= longest else f"{line[:longest]}..."


class AnofpdmError(Exception):
    """What was wrong, where, and what to do about it, in one line, whatever is quoted there."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class VolumeError(AnofpdmError, ValueError):
    """An image that cannot be segmented."""


class BundleError(AnofpdmError, ValueError):
    """A bundle that is missing, altered, or made for something else."""


class OptionsError(AnofpdmError, ValueError):
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
