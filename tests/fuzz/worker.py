"""Fuzz some targets in this process: ``python tests/fuzz/worker.py SEED FIRST NAME=COUNT ...``.

The last line of what it prints is JSON: by target, how many inputs were used, refused and failed,
the failures, and the slowest. The number of the current input is kept in a file, for when the
process dies. Address space is bounded, and so is the time of each input.
"""

import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.targets import TARGETS, Target  # noqa: E402

from anofpdm.runtime.errors import AnofpdmError  # noqa: E402

MEMORY_BYTES, SECONDS = 2 * 2**30, 5
_NAMES = tuple(TARGETS)


class TooSlowError(BaseException):
    """Not an Exception, so that no handler swallows it."""


def case(name: str, seed: int, number: int) -> dict[str, bytes]:
    """The files of one input: the same ones for the same numbers."""
    rng = np.random.default_rng([seed, _NAMES.index(name), number])
    return TARGETS[name].make(rng)


def attempt(target: Target, files: dict[str, bytes], folder: Path) -> str:
    """What came of an input: ``used``, ``refused``, or what is wrong about how it ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.use(folder)
        return "used"
    except AnofpdmError as error:
        if "\n" in str(error) or not str(error):
            return f"several lines: {str(error)!r}"
        left = {path.name for path in folder.iterdir()} - set(files)
        return f"left {sorted(left)}" if left else "refused"
    except TooSlowError:
        return "too slow: " + "".join(traceback.format_exc().splitlines(keepends=True)[-9:-3])
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__)
                if "anofpdm" in frame.filename or "runtime" in frame.filename][-1:]  # fmt: skip
        at = f"{Path(ours[0].filename).name}:{ours[0].lineno}" if ours else ""
        return f"{type(error).__name__} at {at} {Path(where.filename).name}:{where.lineno}: {error}"


def fuzz(seed: int, first: int, counts: dict[str, int], progress: Path) -> dict[str, object]:
    """Go through inputs ``first``, ``first + 1``, ... of each target."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in counts.items():
            started, slowest, failures = time.perf_counter(), (0.0, -1), []
            tally = {"used": 0, "refused": 0}
            for number in range(first, first + count):
                progress.write_text(f"{name} {number}")
                files, before = case(name, seed, number), time.process_time()
                signal.alarm(SECONDS * 8)
                outcome = attempt(TARGETS[name], files, Path(folder, "case"))
                signal.alarm(0)
                elapsed = time.process_time() - before
                slowest = max(slowest, (elapsed, number))
                if elapsed > SECONDS and outcome in tally:
                    outcome = f"{elapsed:.1f} s"
                if outcome in tally:
                    tally[outcome] += 1
                else:
                    failures.append([number, outcome])
            results[name] = {**tally, "failures": failures, "slowest": slowest,
                           "seconds": time.perf_counter() - started}  # fmt: skip
    return results


def _too_slow(*ignored: object) -> None:
    raise TooSlowError


def main() -> None:
    seed, first, progress, *wanted = sys.argv[1:]
    counts = {name: int(count) for name, count in (one.split("=") for one in wanted)}
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    print(json.dumps(fuzz(int(seed), int(first), counts, Path(progress))))


if __name__ == "__main__":
    main()
