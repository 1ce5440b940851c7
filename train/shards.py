"""A checkpoint in pieces: an index, and files beside it of which none is larger than a limit.

``model.pt`` is then a small file of ``torch.save`` that lists, in order, the files of
``model.pt.shards/`` with their sizes and SHA-256; put end to end they are the checkpoint in one
file. Files are named by what they hold, so those of another step are never overwritten; the index
is replaced when they are complete, and what it does not list is removed after that. A run that is
killed leaves an index whose files are all there.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import IO, Any, cast

import torch

from anofpdm.runtime.errors import CheckpointError, OutputError
from anofpdm.runtime.files import sha256, whole_file

MARK = "anofpdm_shards"
_FORMAT = 1
MB = 10**6


def shard_folder(path: Path) -> Path:
    """Where the shards of the checkpoint ``path`` are."""
    return path.with_name(f"{path.name}.shards")


def save_sharded(content: Any, path: Path, limit: int) -> None:
    """Write what ``torch.save`` takes as an index and shards of at most ``limit`` bytes.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or the disk is full.
    """
    folder = shard_folder(path)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    pieces = _Pieces(folder, limit)
    try:
        torch.save(content, cast(IO[bytes], pieces))
    except RuntimeError as error:  # torch's own, about what stopped the writer
        raise error.__context__ or error from None
    pieces.close()
    with whole_file(path) as beside:
        torch.save({MARK: _FORMAT, "shards": pieces.listed}, beside)
    _keep(folder, {shard["name"] for shard in pieces.listed})


def save_in_one(content: Any, path: Path) -> None:
    """Write what ``torch.save`` takes as one file; shards of before are removed after that."""
    with whole_file(path) as beside:
        torch.save(content, beside)
    shutil.rmtree(shard_folder(path), ignore_errors=True)


def joined(index: dict[str, Any], path: Path) -> io.BytesIO:
    """The file that the shards of an index, read from ``path``, are pieces of.

    Raises
    ------
    CheckpointError
        If a shard is missing or was altered; the message names it.
    """
    whole = io.BytesIO()
    try:
        if index[MARK] != _FORMAT:
            raise CheckpointError(f"{path} was not written by this version of anofpdm-train")
        for shard in index["shards"]:
            name, size, digest = shard["name"], shard["bytes"], shard["sha256"]
            if Path(name).name != name:
                raise CheckpointError(f"{path} lists a shard outside its folder, {name}")
            whole.write(_read(shard_folder(path) / name, size, digest, path))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from error
    whole.seek(0)
    return whole


def _read(file: Path, size: int, digest: str, path: Path) -> bytes:
    repair = f"copy {path} again with its whole folder {shard_folder(path).name}"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {repair}")
    content = file.read_bytes()
    if len(content) != size:
        raise CheckpointError(f"{file} has {len(content)} bytes, not {size}: {repair}")
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{file} was altered (SHA-256): {repair}")
    return content


class _Pieces:
    """A file to write to that goes on in another one at the limit. ``listed``: what is complete."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._piece = bytearray()
        self.listed: list[dict[str, Any]] = []

    def write(self, content: Any) -> int:
        """Append bytes."""
        rest = memoryview(content).cast("B")
        written = len(rest)
        while len(rest):
            room = self._limit - len(self._piece)
            self._piece += rest[:room]
            rest = rest[room:]
            if len(self._piece) == self._limit:
                self._finish()
        return written

    def flush(self) -> None:
        """Nothing to do before a piece is full."""

    def close(self) -> None:
        """Finish the last piece."""
        if self._piece:
            self._finish()

    def _finish(self) -> None:
        digest = hashlib.sha256(self._piece).hexdigest()
        name = f"{len(self.listed):04d}-{digest[:16]}"
        file = self._folder / name
        # One that is there may be of the checkpoint that still counts.
        if not file.is_file() or sha256(file) != digest:
            with whole_file(file) as beside:
                beside.write_bytes(self._piece)
        self.listed.append({"name": name, "bytes": len(self._piece), "sha256": digest})
        self._piece = bytearray()


def _keep(folder: Path, names: set[str]) -> None:
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink(missing_ok=True)
