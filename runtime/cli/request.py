"""What a command line asks for: one volume, or the cases of a folder; and where results go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dicom.detect import is_dicom
from ..errors import OutputError, VolumeError
from .discovery import (
    SUFFIXES,
    case_files,
    find_modalities,
    holds_case,
    holds_dicom,
    stem_and_modality,
    stem_of,
)
from .outputs import Outputs

# What is taken for the name of a file, and not of a folder.
_FILES = {".gz", ".img", ".hdr", ".mgz", ".mgh", ".mha", ".nrrd", ".dcm", ".png", ".jpg", ".json",
          ".html", ".csv", ".txt", ".zip"}  # fmt: skip


@dataclass(frozen=True)
class OneVolume:
    """``paths``: a file a modality, or a DICOM series; ``outputs``: what to write of it."""

    paths: tuple[Path, ...]
    outputs: Outputs


@dataclass(frozen=True)
class Cases:
    """All cases below ``root``, with ``kinds`` of files besides masks, into ``folder``."""

    root: Path
    folder: Path
    kinds: tuple[str, ...]


def asked(
    inputs: Sequence[Path],
    named: Mapping[str, Path],
    output: Path | None,
    files: Mapping[str, Path],
    also: Sequence[str],
    modalities: Sequence[str],
) -> OneVolume | Cases:
    """What is meant.

    A folder is one volume if it holds a DICOM series or a case as BraTS lays it out, and ``output``
    is a NIfTI file or left out; otherwise it is a folder of cases.

    Parameters
    ----------
    inputs : files or one folder
    named : files by modality, instead
    output : the mask, or the folder for many; None for a name made of the input's, in the current
        folder
    files, also : what else to write, by kind: where, or just that

    Raises
    ------
    VolumeError, OutputError
        If it cannot be done.
    """
    for path in (*inputs, *named.values()):
        if not path.exists():
            raise VolumeError(f"{path} does not exist")
    if len(inputs) == 1 and not named and inputs[0].is_dir():
        root = inputs[0]
        if not _one(root, output, modalities):
            if files:
                raise OutputError(
                    f"--{next(iter(files))} names one file, {root} is a folder of cases: give "
                    f"--also {next(iter(files))}"
                )
            return Cases(root, output or Path(f"{root.resolve().name}-anofpdm"), tuple(also))
        if holds_dicom(root, below=True):
            return OneVolume((root,), _outputs(root.resolve().name, output, files, also))
    if len(inputs) == 1 and not named and is_dicom(inputs[0]):
        paths = [inputs[0]]
    else:
        paths = find_modalities(inputs, named, modalities)
    name, _ = stem_and_modality(paths[0], modalities)
    return OneVolume(tuple(paths), _outputs(name or paths[0].stem, output, files, also))


def _one(root: Path, output: Path | None, modalities: Sequence[str]) -> bool:
    if output is None:
        return holds_dicom(root) or _is_case(root, modalities)
    if output.name.endswith(SUFFIXES):
        if not (holds_dicom(root, below=True) or holds_case(root, modalities)):
            raise VolumeError(
                f"{root} is a folder without *_{modalities[0]}.nii.gz or a DICOM series: for the "
                f"cases in its folders, name a folder instead of {output}"
            )
        return True
    if not output.is_dir() and output.suffix.lower() in _FILES:
        raise OutputError(f"cannot write {output}: name a mask .nii or .nii.gz, or a folder")
    return False


def _is_case(root: Path, modalities: Sequence[str]) -> bool:
    try:
        case_files(root, modalities)
    except VolumeError:
        return False
    return True


def _outputs(
    name: str, output: Path | None, files: Mapping[str, Path], also: Sequence[str]
) -> Outputs:
    if output and output.is_dir() and not stem_of(output):
        return Outputs({**Outputs.named(name, output, also).paths, **files})
    folder = output.parent if output else Path()
    if output:
        suffix = next((end for end in SUFFIXES if output.name.endswith(end)), "")
        name = output.name.removesuffix(suffix).removesuffix("_mask").removesuffix("_desc-anofpdm")
    paths = dict(Outputs.named(name, folder, also).paths)
    return Outputs({**paths, **({"mask": output} if output else {}), **files})
