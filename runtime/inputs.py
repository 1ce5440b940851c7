"""Which file is which modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import VolumeError

# What the BraTS challenges of 2023 and later call them.
_ALSO = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
SUFFIXES = (".nii.gz", ".nii")


def find_modalities(
    volumes: Sequence[Path], named: Mapping[str, Path], modalities: Sequence[str]
) -> list[Path]:
    """The files to read, in the model's order.

    Parameters
    ----------
    volumes : one file a modality in the model's order, one 4-D file, or the folder of a BraTS case
    named : files by the name of their modality; instead of ``volumes``

    Raises
    ------
    VolumeError
        If a modality is missing, unknown or ambiguous.
    """
    wanted = ", ".join(modalities)
    if volumes and named:
        raise VolumeError("name files by modality or give them in order, not both")
    if not volumes and not named:
        raise VolumeError(f"no volume given: the model expects {wanted}; --help has examples")
    if len(volumes) == 1 and volumes[0].is_dir():
        named = case_files(volumes[0], modalities)
    elif named:
        unknown = [name for name in named if name not in modalities]
        if unknown:
            raise VolumeError(f"the model knows no {unknown[0]}: it expects {wanted}")
    if not named:
        return list(volumes)
    missing = [name for name in modalities if name not in named]
    if missing:
        raise VolumeError(f"{missing[0]} is missing: the model expects {wanted}")
    return [named[name] for name in modalities]


def case_files(folder: Path, modalities: Sequence[str]) -> dict[str, Path]:
    """The files of a case by modality, in a folder laid out as BraTS does: ``*_flair.nii.gz``.

    Raises
    ------
    VolumeError
        If one is missing, or there are several.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem, name = stem_and_modality(path, modalities)
        if not stem or name is None:
            continue
        if name in found:
            raise VolumeError(
                f"{folder} holds {found[name].name} and {path.name}: name the files one by one"
            )
        found[name] = path
    for name in modalities:
        if name not in found:
            raise VolumeError(
                f"{folder} is a folder without *_{name}.nii.gz: name a NIfTI file (.nii, .nii.gz, "
                ".hdr/.img) or the folder of a BraTS case"
            )
    return found


def stem_and_modality(path: Path, modalities: Sequence[str]) -> tuple[str, str | None]:
    """``P01_flair.nii.gz`` is ``P01`` and ``flair``: the name without suffix and modality.

    Returns
    -------
    stem : empty where this is no NIfTI file, or a hidden one
    modality : None where the name does not end with one of these
    """
    stem = stem_of(path)
    if path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists():
        stem = path.stem
    if not stem or path.name.startswith("."):
        return "", None
    last = stem.replace("-", "_").split("_")[-1]
    known = {name.lower(): name for name in modalities}
    name = known.get(last.lower()) or known.get(_ALSO.get(last.lower(), ""))
    return (stem, None) if name is None else (stem[: -len(last)].rstrip("_-") or stem, name)


def stem_of(path: Path) -> str:
    """The name without .nii or .nii.gz, in whatever case; empty where it has neither."""
    suffix = next((one for one in SUFFIXES if path.name.lower().endswith(one)), None)
    return path.name[: -len(suffix)] if suffix else ""
