"""The headers of MR images: found, read without their pixels, and narrowed to one series."""

import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VolumeError
from ..util.optional import require
from .detect import files_below, is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

_CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
_ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_SHOWN_SERIES = 6
_ONE_AT_A_TIME = threading.RLock()
# What pydicom raises on files that are not what they claim to be: it has exceptions that derive
# from nothing else, and says of none when.
UNREADABLE = Exception


@dataclass(frozen=True)
class Header:
    """All of an MR image but its pixels."""

    path: Path
    dataset: "Dataset"
    enhanced: bool  # whether one file holds many frames

    def get(self, keyword: str) -> Any:
        """A value; None where it is absent, empty or malformed."""
        return value(self.dataset, keyword)

    def text(self, keyword: str) -> str:
        """A value in one printable line; empty where it is absent."""
        content = self.get(keyword)
        return "".join(c if c.isprintable() else " " for c in str(content or "")).strip()


@contextmanager
def silenced_pydicom() -> Iterator[None]:
    """Silence pydicom, whose warnings quote values: they could be a patient's. Its settings belong
    to the process, so one thread at a time may do it."""
    config = require("pydicom.config", "dicom")
    with _ONE_AT_A_TIME, warnings.catch_warnings(), config.disable_value_validation():
        silenced = config.logger.disabled
        warnings.simplefilter("ignore")
        config.logger.disabled = True
        try:
            yield
        finally:
            config.logger.disabled = silenced


def value(dataset: "Dataset", keyword: str) -> Any:
    """A value of a dataset; None where it is absent, empty or malformed."""
    try:
        content = dataset.get(keyword)
        return None if content is None or content == "" else content
    except UNREADABLE:
        return None


def find_headers(path: Path) -> tuple[list[Header], list[str]]:
    """The MR images of a folder, at any depth, or of one file.

    Returns
    -------
    headers : in no order that means anything
    ignored : what else was there, a phrase each

    Raises
    ------
    VolumeError
        If nothing is there, no MR image is among it, or a DICOM file is damaged.
    """
    if not path.exists():
        raise VolumeError(f"{path} does not exist")
    if path.is_file() and not is_dicom(path):
        raise VolumeError(f"{path} is not a DICOM file: it lacks the mark DICM at byte 128")
    headers: list[Header] = []
    others: Counter[str] = Counter()
    strange = directories = 0
    for file in [path] if path.is_file() else files_below(path):
        if not is_dicom(file):
            strange += 1
            continue
        content = _read(file)
        if isinstance(content, Header):
            headers.append(content)
        elif content == _MEDIA_DIRECTORY:
            directories += 1
        else:
            others[_name_of(content)] += 1
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
    if not headers and path.is_file():
        what = "a DICOMDIR: name its folder" if directories else f"no MR image ({kinds})"
        raise VolumeError(f"{path} is {what}")
    if not headers:
        what = f"no MR image: {kinds}" if others else "no DICOM image"
        raise VolumeError(f"{path} holds {what}; name the folder of an MR series")
    ignored = []
    if strange:
        ignored.append(_plural(strange, "file") + " not DICOM")
    if directories:
        ignored.append("a DICOMDIR")
    if others:
        ignored.append(f"{_plural(others.total(), 'object')} not MR images ({kinds})")
    return headers, ignored


def choose_series(
    headers: Sequence[Header], series_uid: str | None, where: Path
) -> tuple[list[Header], int]:
    """The images of one series, and how many others there are.

    Parameters
    ----------
    series_uid : a SeriesInstanceUID, or an end of it that no other of the series has; None where
        there is only one

    Raises
    ------
    VolumeError
        If that does not name one series.
    """
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    wanted = [uid for uid in series if series_uid is None or uid == series_uid]
    if series_uid and not wanted:
        wanted = [uid for uid in series if uid.endswith(series_uid)]
    if len(wanted) == 1:
        chosen = series[wanted[0]]
        return chosen, len(headers) - len(chosen)
    listed = "; ".join(_described(uid, series) for uid in sorted(series)[:_SHOWN_SERIES])
    if len(series) > _SHOWN_SERIES:
        listed += f"; and {len(series) - _SHOWN_SERIES} more"
    problem = f"holds {_plural(len(series), 'series', 'series')}"
    if series_uid:
        safe = "".join(c for c in series_uid if c in "0123456789.")[-64:]
        problem += f", {'none' if not wanted else 'several'} with a UID that ends in {safe!r}"
    raise VolumeError(
        f"{where} {problem} ({listed}): choose one by its UID or the end shown, with --series"
    )


def _read(file: Path) -> Header | str:
    """The header of an MR image; of any other object, its SOP class."""
    filereader = require("pydicom.filereader", "dicom")
    damaged = f"{file} is truncated or damaged: copy it again from its source, or remove it"
    try:
        meta = filereader.read_file_meta_info(file)
        kind = str(meta.get("MediaStorageSOPClassUID") or "")
        if kind and kind != _CLASSIC and kind not in _ENHANCED:
            return kind
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            # Inflating has no bound that could be checked before.
            raise VolumeError(f"{file} is deflated as a whole: inflate it first (dcmconv +ti)")
        dataset = filereader.dcmread(file, stop_before_pixels=True)
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise VolumeError(damaged) from error
    kind = str(value(dataset, "SOPClassUID") or "")
    if kind and kind != _CLASSIC and kind not in _ENHANCED:
        return kind
    header = Header(file, dataset, kind in _ENHANCED)
    for needed in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        if not header.text(needed):
            raise VolumeError(damaged)
    return header


def _described(uid: str, series: dict[str, list[Header]]) -> str:
    """A series in a few words: enough of its UID's end to tell it from the others."""
    shown = 8
    while shown < len(uid) and sum(other.endswith(uid[-shown:]) for other in series) > 1:
        shown += 1
    description = series[uid][0].text("SeriesDescription")
    if len(description) > 32:
        description = description[:29] + "..."
    end = uid if shown >= len(uid) else f"...{uid[-shown:]}"
    return f"{end} {description!r}, {_plural(len(series[uid]), 'image')}"


def _name_of(kind: str) -> str:
    name: str = require("pydicom.uid", "dicom").UID(kind).name
    return name.removesuffix(" Storage") if name != kind else "of another kind"


def _plural(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
