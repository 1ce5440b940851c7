"""Which files are which modality, and which cases a folder holds.

NIfTI files, folders as BraTS lays them out, BIDS, DICOM series.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from ..dicom.detect import files_below, is_dicom
from ..errors import VolumeError
from ..volume.nifti import is_own_output, load_image

# Names in the BraTS challenges of 2023 and later.
_BRATS_2023 = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
SUFFIXES = (".nii.gz", ".nii")
# Names in BIDS, without regard for contrast agents.
_BIDS = {"flair": "flair", "t1w": "t1", "t2w": "t2"}
# The record of a run, which makes a folder one of results.
RUN = "anofpdm-run.json"
_DERIVED = "_desc-anofpdm_"
_NIFTI = (*SUFFIXES, ".hdr", ".img")
_NO_SCANS = ("seg", "mask", "label")
_HERE = PurePath()
# Of the 255 bytes of a file's name: the rest is for what is added to it.
_LONGEST_NAME = 180


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
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem, name = stem_and_modality(path, modalities)
        if not stem or name is None:
            continue
        if name in files:
            raise VolumeError(
                f"{folder} holds {files[name].name} and {path.name}: name the files one by one"
            )
        files[name] = path
    for name in modalities:
        if name not in files:
            raise VolumeError(
                f"{folder} is a folder without *_{name}.nii.gz: name a NIfTI file (.nii, .nii.gz, "
                ".hdr/.img) or the folder of a BraTS case"
            )
    return files


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
    by_name = {name.lower(): name for name in modalities}
    name = by_name.get(last.lower()) or by_name.get(_BRATS_2023.get(last.lower(), ""))
    return (stem, None) if name is None else (stem[: -len(last)].rstrip("_-") or stem, name)


def stem_of(path: Path) -> str:
    """The name without .nii or .nii.gz, in whatever case; empty where it has neither."""
    suffix = next((end for end in SUFFIXES if path.name.lower().endswith(end)), None)
    return path.name[: -len(suffix)] if suffix else ""


@dataclass(frozen=True)
class Case:
    """A volume in a folder of many."""

    name: str  # of its results
    images: tuple[Path, ...]  # a file a modality, in the model's order, or the folder of a series
    folder: PurePath = _HERE  # where results go, below that of the run
    problem: str = ""  # why it cannot be segmented, empty where nothing is known against it
    dicom: bool = False  # whether it is a DICOM series

    @property
    def key(self) -> str:
        """Unique in a run."""
        return (self.folder / self.name).as_posix()


def find_cases(root: Path, modalities: Sequence[str]) -> list[Case]:
    """The cases below a folder, by name.

    In a BIDS folder (``sub-*``) those are the scans in ``anat``. Elsewhere: folders that hold
    ``*_flair.nii.gz`` and so on; folders of a DICOM series, however deep; files ``*_flair.nii.gz``,
    or, for a model of one modality and where no name ends with one, all NIfTI files but those
    that end with seg, mask or label.

    Raises
    ------
    VolumeError
        If there are none, or two have the same name.
    """
    if any(_subjects(root)):
        cases = list(_bids(_subjects(root), root, modalities))
    elif _is_subject(root.resolve()):
        cases = list(_bids([root], root.resolve().parent, modalities))
    elif is_dicom_source(root):
        cases = [Case(root.resolve().name, (root,), dicom=True)]
    else:
        cases = [*_flat(root, modalities), *_folders(root, modalities)]
    if not cases:
        raise VolumeError(
            f"{root} holds no cases: no NIfTI files (*_{modalities[0]}.nii.gz, or of any name for "
            "a model of one modality), no folders of such, no BIDS subjects, no DICOM series"
        )
    seen: dict[str, Case] = {}
    for case in sorted(map(_nameable, cases), key=lambda case: case.key):
        if case.key in seen:
            paths = ", ".join(map(str, seen[case.key].images[:1] + case.images[:1]))
            raise VolumeError(f"{root} holds two cases called {case.key} ({paths}): rename one")
        seen[case.key] = case
    return list(seen.values())


def _nameable(case: Case) -> Case:
    if len(os.fsencode(case.name)) <= _LONGEST_NAME:
        return case
    return replace(case, problem=f"{case.name}: too long a name for what is written: rename it")


def is_dicom_source(path: Path, below: bool = False) -> bool:
    """Whether this is a DICOM image, or a folder with one right in it or (``below``) however deep;
    and no NIfTI right in it: a case of NIfTI files may keep what it was made of."""
    if not path.is_dir():
        return is_dicom(path)
    files = [file for file in sorted(path.iterdir()) if not file.is_dir()]
    if any(file.name.lower().endswith(_NIFTI) for file in files):
        return False
    candidates = files_below(path) if below else files
    return any(file.name != "DICOMDIR" and is_dicom(file) for file in candidates)


def has_modality_files(folder: Path, modalities: Sequence[str]) -> bool:
    """Whether files of the model's modalities lie right in this folder."""
    return any(stem_and_modality(path, modalities)[1] for path in folder.iterdir())


def ignored_files(root: Path, cases: Sequence[Case]) -> list[str]:
    """The names of NIfTI files right in the folder that belong to no case."""
    used = {path.resolve() for case in cases for path in case.images}
    return sorted(
        path.name
        for path in root.iterdir()
        if stem_of(path) and not path.is_dir() and path.resolve() not in used
    )


def _subjects(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.iterdir()) if _is_subject(path))


def _is_subject(path: Path) -> bool:
    named = path.name.startswith("sub-") and path.is_dir()
    return named and (any(path.glob("anat")) or any(path.glob("ses-*/anat")))


def _bids(subjects: Iterable[Path], root: Path, modalities: Sequence[str]) -> Iterator[Case]:
    for subject in subjects:
        for anat in sorted([*subject.glob("anat"), *subject.glob("ses-*/anat")]):
            scans: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
            for path in sorted(anat.iterdir()):
                entities, name = _bids_name(path, modalities)
                if name:
                    # A model of one modality takes every scan, others what belongs together.
                    group = entities if len(modalities) == 1 else _visit(entities)
                    scans[group][name].append(path)
            below = anat.resolve().relative_to(root.resolve())
            if not scans:
                name = "_".join(part for part in below.parts if part != "anat")
                scans[name] = defaultdict(list)
            for group, files in scans.items():
                yield _case(group, files, modalities, below)


def _bids_name(path: Path, modalities: Sequence[str]) -> tuple[str, str]:
    stem = stem_of(path)
    if not stem or path.name.startswith(".") or _DERIVED in path.name:
        return "", ""
    entities, _, last = stem.rpartition("_")
    name = _BIDS.get(last.lower(), "")
    if name == "t1" and "_ce-" in entities:
        name = "t1ce"
    return (entities, name) if name in modalities else ("", "")


def _visit(entities: str) -> str:
    """``sub-01_ses-2_run-1`` is of ``sub-01_ses-2``."""
    return "_".join(part for part in entities.split("_") if part[:4] in ("sub-", "ses-"))


def _flat(root: Path, modalities: Sequence[str]) -> Iterator[Case]:
    named: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    plain: list[tuple[str, Path]] = []
    for path in sorted(root.iterdir()):
        stem, name = stem_and_modality(path, modalities)
        if not stem or path.is_dir() or _DERIVED in path.name:
            continue
        if name:
            named[stem][name].append(path)
        elif not stem.lower().endswith(_NO_SCANS) and not _is_ours(path):
            plain.append((stem, path))
    for stem, files in named.items():
        yield _case(stem, files, modalities, _HERE)
    if not named and len(modalities) == 1:
        for stem, path in plain:
            yield Case(stem, (path,))


def _is_ours(path: Path) -> bool:
    """Whether it is a mask or a map that was written here."""
    try:
        return is_own_output(load_image(path))
    except VolumeError:
        return False


def _folders(root: Path, modalities: Sequence[str]) -> Iterator[Case]:
    for folder in sorted(path for path in root.iterdir() if _visible(path)):
        if (folder / RUN).exists():  # results of ours
            continue
        if has_modality_files(folder, modalities):
            try:
                files = case_files(folder, modalities)
            except VolumeError as error:
                yield Case(folder.name, (), problem=str(error))
            else:
                yield Case(folder.name, tuple(files[name] for name in modalities))
            continue
        for below, inner, _ in os.walk(folder):
            if is_dicom_source(Path(below)):
                name = "_".join(Path(below).relative_to(root).parts)
                yield Case(name, (Path(below),), dicom=True)
                inner.clear()  # a series is read with what lies below its folder


def _visible(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _case(
    name: str, files: dict[str, list[Path]], modalities: Sequence[str], folder: PurePath
) -> Case:
    for modality in modalities:
        paths = files.get(modality, [])
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths)
            why = f"several are {modality}: {names}" if paths else f"{modality} is missing"
            return Case(name, (), folder, f"{name}: {why}")
    return Case(name, tuple(files[modality][0] for modality in modalities), folder)
