"""``losses.csv``: the loss of every iteration of a run."""

from pathlib import Path

from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.util.files import whole_file

LOSSES = "losses.csv"
_HEADER = "iteration,loss"


class LossRecord:
    """A line an iteration, 1-based, with 9 significant digits, which float32 needs.

    With several processes it is the loss of the first process's part of the batch.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Continue after iteration ``step``.

        Lines of later iterations, by a run that was killed after its checkpoint, are removed.
        """
        self._path, self._waiting = path, [_HEADER]
        if path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
                    if line.endswith("\n") and _iteration(line) <= step]  # fmt: skip
            with whole_file(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self._waiting = [] if kept else [_HEADER]

    def add(self, step: int, loss: float) -> None:
        """Record the loss of iteration ``step``, to be written by :meth:`flush`."""
        self._waiting.append(f"{step},{loss:.9g}")

    def flush(self) -> None:
        """Append the recorded losses to the file."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self._waiting)
        self._waiting = []


def read_losses(path: Path) -> dict[int, float]:
    """Losses by iteration, 1-based.

    Raises
    ------
    CheckpointError
        If the file does not exist, or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: name the folder of a run that wrote it")
    header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    try:
        if header != _HEADER:
            raise ValueError(header)
        pairs = [line.split(",") for line in lines]
        return {int(step): float(loss) for step, loss in pairs}
    except ValueError as error:
        raise CheckpointError(f"{path} is not a record of losses ({error})") from error


def _iteration(line: str) -> int:
    """The iteration of a line; 0 for the header."""
    first = line.partition(",")[0]
    return int(first) if first.isdigit() else 0
