"""What a command line asks for: one volume, or the cases of a folder; and where results go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, VolumeError
from .discovery import (
    SUFFIXES,
    case_files,
    find_modalities,
    has_modality_files,
    is_dicom_source,
    stem_and_modality,
    stem_of,
)
from .outputs import Outputs

# Suffixes of files, by which a name is not that of a folder.
_FILES = {".gz", ".img", ".hdr", ".mgz", ".mgh", ".mha", ".nrrd", ".dcm", ".png", ".jpg", ".json",
          ".html", ".csv", ".txt", ".zip"}  # fmt: skip


@dataclass(frozen=True)
class VolumeRequest:
    """One volume to segment."""

    paths: tuple[Path, ...]  # a file a modality, or the folder or file of a DICOM series
    dicom: bool  # which of the two
    name: str  # of the case
    outputs: Outputs


@dataclass(frozen=True)
class FolderRequest:
    """All cases of a folder."""

    root: Path  # below which the cases are
    folder: Path  # of the results
    kinds: tuple[str, ...]  # of files besides masks and statistics


def parse_request(
    volumes: Sequence[Path],
    named: Mapping[str, Path],
    output: Path | None,
    files: Mapping[str, Path],
    also: Sequence[str],
    modalities: Sequence[str],
) -> VolumeRequest | FolderRequest:
    """A folder is one volume if it holds a DICOM series or a case as BraTS lays it out, and
    ``output`` is a NIfTI file or left out; otherwise it is a folder of cases.

    Parameters
    ----------
    volumes : files or one folder
    named : files by modality, instead
    output : the mask, or the folder for many; None for a name made of the input's, in the current
        folder
    files, also : further outputs by kind: where, or just the kind
    modalities : of the model

    Raises
    ------
    VolumeError, OutputError
        If it cannot be done.
    """
    for path in (*volumes, *named.values()):
        if not path.exists():
            raise VolumeError(f"{path} does not exist")
    single = volumes[0] if len(volumes) == 1 and not named else None
    if single and single.is_dir() and not _is_one_volume(single, output, modalities):
        if files:
            raise OutputError(
                f"--{next(iter(files))} names one file, {single} is a folder of cases: give "
                f"--also {next(iter(files))}"
            )
        results = output or Path(f"{single.resolve().name}-anofpdm")
        return FolderRequest(single, results, tuple(also))
    if single and is_dicom_source(single, below=True):
        name = single.resolve().name if single.is_dir() else _name(single, modalities)
        outputs = _outputs(name, output, files, also)
        return VolumeRequest((single,), True, _case_name(single), outputs)
    paths = find_modalities(volumes, named, modalities)
    outputs = _outputs(_name(paths[0], modalities), output, files, also)
    return VolumeRequest(tuple(paths), False, _case_name(paths[0]), outputs)


def _name(path: Path, modalities: Sequence[str]) -> str:
    return stem_and_modality(path, modalities)[0] or path.stem


def _case_name(path: Path) -> str:
    """What results call a volume: its first file without the suffix, or its folder."""
    stem = path.stem if path.suffix in (".hdr", ".img") else path.resolve().name
    return stem_of(path) or stem


def _is_one_volume(root: Path, output: Path | None, modalities: Sequence[str]) -> bool:
    """Whether a folder is meant as one volume, by where the output goes."""
    if output is None:
        return is_dicom_source(root) or _is_case(root, modalities)
    if output.name.endswith(SUFFIXES):
        if not (is_dicom_source(root, below=True) or has_modality_files(root, modalities)):
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
