"""Cohorts on disk: the files of each patient, and the labels of slices.

Three layouts are recognised. *BraTS* (also the LGG set): ``NAME/NAME_flair.nii.gz`` and so on,
``NAME_seg.nii.gz``. *ATLAS v2.0* (BIDS): ``sub-*/ses-*/anat/*_T1w.nii.gz``, ``*_mask.nii.gz``.
*CSV*, for all others: columns ``patient``, one per modality, and optionally ``mask``,
``slice_labels`` and ``split``; paths are relative to the file. ``slice_labels`` is one digit per
axial slice from the feet up, 1 where it shows a lesion; a single 0 where no slice does.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anofpdm.runtime.errors import CohortError

_SPLITS_FILE = "patients.csv"
_CSV_COLUMNS = {"patient", "mask", "slice_labels", "split"}


@dataclass(frozen=True)
class Case:
    """One scan."""

    patient: str  # name of the patient, who may have several scans
    volumes: dict[str, Path]  # files by modality
    mask: Path | None = None  # reference mask
    slice_labels: str = ""  # a digit 0 or 1 an axial slice, or a single 0; "" if unknown
    split: str = ""  # "" if not given

    def paths(self, modalities: tuple[str, ...]) -> list[Path]:
        """The files of these modalities, in order."""
        return [self.volumes[name] for name in modalities]


def read_cohort(
    source: Path, modalities: tuple[str, ...], note: Callable[[str], None] = lambda text: None
) -> list[Case]:
    """The cases of a cohort that have all of ``modalities``, sorted by patient.

    Parameters
    ----------
    note : called with a line of text if cases lack a modality

    Raises
    ------
    CohortError
        If the layout is not recognised, a file is missing, or no case is left.
    """
    if source.is_file():
        cases = _read_csv(source)
    elif source.is_dir():
        cases = _read_brats(source) or _read_atlas(source)
        if not cases:
            raise CohortError(
                f"{source} looks neither like BraTS (NAME/NAME_flair.nii.gz) nor like ATLAS "
                "(sub-*/ses-*/anat/*_T1w.nii.gz): list the files in a CSV"
            )
    else:
        raise CohortError(f"{source} does not exist: name a cohort folder or a CSV file")
    usable = [case for case in cases if set(modalities) <= set(case.volumes)]
    if not usable:
        names = sorted({name for case in cases for name in case.volumes})
        raise CohortError(
            f"{source}: no case has {', '.join(modalities)}; found modalities: {', '.join(names)}"
        )
    if len(usable) < len(cases):
        incomplete = len(cases) - len(usable)
        note(f"{incomplete} of {len(cases)} cases lack some of {', '.join(modalities)}: left out")
    return sorted(usable, key=lambda case: (case.patient, case.volumes[modalities[0]]))


def assign_splits(
    cases: list[Case], seed: int, val_share: float = 0.1, test_share: float = 0.1
) -> list[Case]:
    """Put every patient into ``train``, ``val`` or ``test``; splits that are given stay.

    Patients, not scans, are split. The draw depends on the seed and the set of patients only.

    Raises
    ------
    CohortError
        If some patients have a split and others none.
    """
    given = {case.patient: case.split for case in cases if case.split}
    patients = sorted({case.patient for case in cases})
    missing = [patient for patient in patients if patient not in given]
    if given and missing:
        raise CohortError(f"no split is given for {missing[0]} and {len(missing) - 1} more")
    if missing:
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(patients))
        n_val, n_test = (round(share * len(patients)) for share in (val_share, test_share))
        for rank, i in enumerate(order):
            name = "val" if rank < n_val else "test" if rank < n_val + n_test else "train"
            given[patients[i]] = name
    return [
        Case(case.patient, case.volumes, case.mask, case.slice_labels, given[case.patient])
        for case in cases
    ]


def _read_brats(folder: Path) -> list[Case]:
    splits = _read_splits(folder / _SPLITS_FILE)
    cases = []
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        prefix = case.name + "_"
        files = {
            path.name.removeprefix(prefix).split(".nii")[0]: path
            for path in sorted(case.iterdir())
            if path.name.startswith(prefix) and path.name.endswith((".nii", ".nii.gz"))
        }
        mask = files.pop("seg", None)
        if files:
            cases.append(Case(case.name, files, mask, split=splits.get(case.name, "")))
    return cases


def _read_atlas(folder: Path) -> list[Case]:
    splits = _read_splits(folder / _SPLITS_FILE)
    cases = []
    for path in sorted(folder.glob("**/sub-*/ses-*/anat/*_T1w.nii*")):
        patient = path.parents[2].name
        # A lesion mask where there are several, such as a brain mask.
        masks = sorted(
            path.parent.glob("*_mask.nii*"), key=lambda p: ("lesion" not in p.name.lower(), p)
        )
        mask = masks[0] if masks else None
        cases.append(Case(patient, {"t1": path}, mask, split=splits.get(patient, "")))
    return cases


def _read_csv(path: Path) -> list[Case]:
    cases = []
    for number, row in enumerate(_rows(path), start=2):
        where = f"{path}, line {number}"
        patient = row.get("patient", "")
        if not patient:
            raise CohortError(
                f"{where}: no patient; the columns are patient, modalities, mask, ..."
            )
        volumes = {
            name: path.parent / value
            for name, value in row.items()
            if name not in _CSV_COLUMNS and value
        }
        mask = path.parent / row["mask"] if row.get("mask") else None
        for file in [*volumes.values(), *([mask] if mask else [])]:
            if not file.is_file():
                raise CohortError(f"{where}: {file} does not exist")
        labels = row.get("slice_labels", "")
        if set(labels) - {"0", "1"}:
            raise CohortError(f"{where}: slice_labels must be digits 0 and 1, not {labels!r}")
        if not mask and not labels:
            raise CohortError(f"{where}: give a mask or slice_labels")
        cases.append(Case(patient, volumes, mask, labels, row.get("split", "")))
    return cases


def _read_splits(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = [row for row in _rows(path) if row.get("split") and row.get("patient")]
    return {row["patient"]: row["split"] for row in rows}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} is not a readable CSV file: {error}") from error
    return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]
