"""What a volume may take: said by its header, checked before anything is read.

A file says in a few bytes how much it holds. What it says is compared with the size of the file,
and what reading would take with the memory that is free, so that a damaged header, or a small file
that inflates to many gigabytes, ends in one line and not in a machine without memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage

from ..errors import VolumeError

GIB = 2**30
# Of deflate: 258 bytes take two bits at least.
_GZIP_RATIO = 1032
# The network, its library and Python (measured: 0.2 to 0.3 GiB), and slabs of voxels on their way.
_PROCESS_BYTES = GIB // 2
_FLOAT32 = 4


@dataclass(frozen=True)
class Limits:
    """Beyond these a volume is refused unread, as is one that the machine has no memory for."""

    file_bytes: int = 16 * GIB  # voxels of one file; 0.25 mm in double precision has half of that
    memory_bytes: int = 32 * GIB  # of the process


LIMITS = Limits()


def check_claim(image: SpatialImage, name: str, limits: Limits = LIMITS) -> None:
    """Compare what a header says with the size of the file; images in memory are taken as they are.

    Raises
    ------
    VolumeError
        If the file cannot hold that much, or nobody should read it.
    """
    proxy = image.dataobj
    if not isinstance(proxy, ArrayProxy):
        return
    shape = tuple(int(n) for n in proxy.shape)
    if min(shape, default=0) < 0:
        raise VolumeError(f"{name} claims shape {shape}: its header is damaged")
    claimed = math.prod(shape) * int(proxy.dtype.itemsize)
    if claimed > limits.file_bytes:
        raise VolumeError(
            f"{name} claims shape {shape}, {_gib(claimed)} of voxels: at most "
            f"{_gib(limits.file_bytes)} are read; is its header damaged?"
        )
    offset = int(proxy.offset)
    if not 0 <= offset <= limits.file_bytes:
        raise VolumeError(f"{name} claims that its voxels begin at byte {offset}: it is damaged")
    if not isinstance(proxy.file_like, str):
        return
    path = Path(proxy.file_like)
    try:
        file_bytes = path.stat().st_size
    except OSError as error:
        raise VolumeError(f"{name} cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if suffix == ".gz":
        file_bytes *= _GZIP_RATIO
    elif suffix in ImageOpener.compress_ext_map:
        return
    if offset + claimed > file_bytes:
        raise VolumeError(
            f"{name} is truncated or damaged: its header claims shape {shape}, "
            f"{offset + claimed} bytes, and the file holds at most {file_bytes}"
        )


def estimate_bytes(shapes: Sequence[tuple[int, ...]], modalities: int) -> int:
    """What segmenting a volume takes of memory, the whole process counted, but not arrays that the
    caller holds.

    Every modality is held once in float32, and one of them a second time while its quantiles are
    found; later, mask and map take less. One on other voxels is held as it is, too, and as it
    becomes.

    Parameters
    ----------
    shapes : (X, Y, Z) of the volume, and of every modality that has other voxels
    modalities : how many the volume has in all
    """
    voxels = [math.prod(int(n) for n in shape) for shape in shapes]
    resampling = voxels[0] + max(voxels[1:]) if len(voxels) > 1 else 0
    copies = modalities * voxels[0] + max(voxels[0], resampling)
    return _FLOAT32 * copies + _PROCESS_BYTES


def check_memory(needed: int, what: str, limits: Limits = LIMITS) -> None:
    """Refuse what takes more memory than it may, or than there is.

    Raises
    ------
    VolumeError
        It says what would be needed, what there is, and what to do.
    """
    free = free_bytes()
    if needed > limits.memory_bytes:
        allowed = f"{_gib(limits.memory_bytes)} are allowed"
    elif free is not None and needed > free + _PROCESS_BYTES // 2:
        # A part of what the process takes it has by now.
        allowed = f"{_gib(free)} are free"
    else:
        return
    raise VolumeError(
        f"{what} would take {_gib(needed)} of memory, {allowed}: resample it to larger voxels, cut "
        "away what shows no head, or use a machine with more memory"
    )


def free_bytes() -> int | None:
    """Memory that the machine, and the container that this may be, could still give; None where
    the system does not tell."""
    sources = [n for n in (_machine_bytes(), _container_bytes()) if n is not None]
    return max(0, min(sources)) if sources else None


def _machine_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _container_bytes(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit of a control group (version 2); the file cache gives way."""
    try:
        allowed = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = int(dict(line.split() for line in lines)["inactive_file"])
        return int(allowed) - (used - cached)
    except (OSError, KeyError, ValueError):
        return None


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
