"""Files that appear whole or not at all, and their fingerprints."""

import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to ``path`` to write to; rename it to ``path`` in the end: see
    :func:`whole_files`."""
    with whole_files({"": path}) as temporary:
        yield temporary[""]


@contextmanager
def whole_files(paths: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Yield a temporary name next to each path to write to; if no error is raised, when all files
    are on the disk, rename them to the paths, in their order.

    Temporary names keep the suffixes of the paths, since image libraries go by them.

    Raises
    ------
    OutputError
        If a folder is missing or cannot be written to, or the disk is full.
    """
    temporary: dict[str, Path] = {}
    path = Path()
    try:
        for key, path in paths.items():
            writable_folder(path)
            name, dot, suffixes = path.name.partition(".")
            temporary[key] = path.with_name(f".{name}-{secrets.token_hex(4)}{dot}{suffixes}")
        yield temporary
        for key, file in temporary.items():
            path = paths[key]
            _to_disk(file)
        for key, path in paths.items():
            os.replace(temporary[key], path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """So that after a power cut there is the whole file or none."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of ``path`` that killed processes left behind."""
    name, dot, suffixes = path.name.partition(".")
    # The temporary file of a temporary file has two marks.
    mark, ends = "-[0-9a-f]{8}", re.escape(dot + suffixes)
    leftover = re.compile(rf"\.({mark}\.)?{re.escape(name)}{mark}{ends}")
    for pattern in (f".{glob.escape(name)}-*", f".-*.{glob.escape(name)}-*"):
        for other in path.parent.glob(pattern):
            if leftover.fullmatch(other.name):
                other.unlink(missing_ok=True)


def writable_folder(path: Path) -> None:
    """Check that a file named ``path`` could be created; see :func:`whole_file`."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: folder {folder} does not exist: create it first")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder: name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: folder {folder} is read-only: choose another")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that do the same; the lock ends with the process.

    Where the system has no such locks (Windows, some network drives), there is none.

    Raises
    ------
    OutputError
        If another process is in it.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another run is writing to {folder}: wait for it, or name another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def check_folder(path: Path) -> None:
    """Check that a folder is there and can be written to, or can be made."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot write to {path}: it is a file: name a folder")
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise OutputError(f"cannot write to {path}: {there} is a file: name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {path}: {there} is read-only: choose another folder")


def sha256(path: Path) -> str:
    """Fingerprint of a file: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
