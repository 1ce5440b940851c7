"""A run over the cases of a folder: one model, one table, and nothing done twice."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nibabel.spatialimages import SpatialImage

from anofpdm import __version__

from ..errors import AnofpdmError, OutputError, VolumeError, printable
from ..report.stats import ROW, failed_row, mask_sha256, stats_row
from ..segmenter import Segmenter
from ..util.files import remove_leftovers, sole_writer, whole_file, write_json
from ..volume.nifti import read_mask
from .discovery import RUN, Case
from .outputs import Outputs
from .source import Source, describe_inputs, open_source

TABLE, BIDS = "anofpdm.csv", "dataset_description.json"
# Without what differs from run to run.
_COLUMNS = tuple(name for name in ROW if name != "seconds")
Row = dict[str, str | float | int]


@dataclass(frozen=True)
class Batch:
    """Cases to segment into a folder, each with a mask and its statistics."""

    segmenter: Segmenter  # the model, loaded
    cases: Sequence[Case]  # in the order of the table
    folder: Path  # of the results
    kinds: tuple[str, ...] = ()  # of further files, see outputs.SUFFIXES
    every_slice: bool = False  # segment healthy slices, too

    def outputs(self, case: Case) -> Outputs:
        """The files of one case."""
        kinds = dict.fromkeys(("stats", *self.kinds))
        return Outputs.named(case.name, self.folder / case.folder, kinds)

    def run(
        self,
        overwrite: bool | None = None,
        on_row: Callable[[Row, bool], None] = lambda row, kept: None,
        progress: Callable[[int, int, int], None] = lambda cases, done, total: None,
    ) -> list[Row]:
        """Segment what has not been segmented yet, and write the table of all cases.

        What is wrong with a case is its row's ``reason``, and the others go on. A case counts as
        done when its statistics are there, which come last, and name the same input; interrupted at
        any moment, the run goes on when it is started again. What failed leaves no files, not even
        those of a former input.

        Parameters
        ----------
        overwrite : True to segment all cases again, whatever is there; False to refuse where a mask
            would be replaced, because its case's input has changed, say; None to replace such masks
        on_row : called with each row as it is known, and whether it was kept from before
        progress : called with the number of cases done, of slices done, and of slices in all
            volumes fetched so far

        Returns
        -------
        A row a case, in the order of the cases; see
        :func:`anofpdm.runtime.report.stats.stats_row`

        Raises
        ------
        OutputError
            If the folder cannot be written to, holds another run, or one is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.folder):
            kept = self._claim(overwrite)
            waiting = [case for case in self.cases if case.key not in kept]
            return self._run(kept, waiting, on_row, progress)

    def _run(
        self,
        kept: dict[str, Row],
        waiting: Sequence[Case],
        on_row: Callable[[Row, bool], None],
        progress: Callable[[int, int, int], None],
    ) -> list[Row]:
        rows = dict(kept)
        for row in kept.values():
            on_row(row, True)
        try:
            for case, row in self._segmented(
                waiting, lambda done, total: progress(len(rows), done, total)
            ):
                if row["status"] != "ok":
                    for path in self.outputs(case).paths.values():
                        path.unlink(missing_ok=True)
                rows[case.key] = row
                on_row(row, False)
        finally:
            ordered = [rows[case.key] for case in self.cases if case.key in rows]
            self._write_table(ordered)
        return ordered

    def _segmented(
        self, cases: Iterable[Case], progress: Callable[[int, int], None]
    ) -> Iterator[tuple[Case, Row]]:
        under_way: list[tuple[Case, Source | None]] = []

        def volumes() -> Iterator[Sequence[SpatialImage] | VolumeError]:
            for case in cases:
                source: Source | None = None
                problem: VolumeError | None = None
                try:
                    source = self._open(case)
                except VolumeError as error:
                    problem = error
                under_way.append((case, source))
                yield source.images if source else problem or VolumeError(case.problem)

        each = self.segmenter.segment_each(
            volumes(), every_slice=self.every_slice, progress=progress
        )
        for number, result in enumerate(each):
            case, source = under_way[number]
            under_way[number] = case, None
            if isinstance(result, VolumeError):
                yield case, _failed(case, result)
                continue
            assert source
            try:
                result = replace(result, seconds=None)
                statistics = self.outputs(case).write(result, source, case.key)
            except VolumeError as error:
                yield case, _failed(case, error)
            else:
                yield case, stats_row(statistics)

    def _open(self, case: Case) -> Source:
        if case.problem:
            raise VolumeError(case.problem)
        source = open_source(case.images, case.dicom)
        (self.folder / case.folder).mkdir(parents=True, exist_ok=True)
        if "dicom-seg" in self.kinds:
            source.check_seg(self.outputs(case).paths["dicom-seg"])
        return source

    def _kept(self, case: Case) -> Row | None:
        """The row of a case that is done."""
        outputs = self.outputs(case)
        if case.problem or not all(path.is_file() for path in outputs.paths.values()):
            return None
        try:
            content = json.loads(outputs.paths["stats"].read_text(encoding="utf-8"))
            made_by, bundle = content["provenance"], self.segmenter.bundle
            same = (
                content["inputs"]
                == [image.as_json() for image in describe_inputs(case.images, case.dicom)]
                and made_by["seed"] == self.segmenter.seed
                and made_by["files_sha256"] == dict(bundle.manifest.files)
                and content["mask"]["sha256"] == mask_sha256(read_mask(outputs.mask))
            )
            return stats_row(content) if same else None
        except (AnofpdmError, OSError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def _claim(self, overwrite: bool | None) -> dict[str, Row]:
        """Make the folder this run's, or see that it is; the rows of the cases that are done."""
        path, mine = self.folder / RUN, self._identity()
        going_on = path.is_file() and not overwrite
        differing = _differences(path, mine) if going_on else ""
        if differing:
            raise OutputError(
                f"{self.folder} holds a run with another {differing}: name another folder, or give "
                "--overwrite to segment all cases again"
            )
        kept_rows = [(case, self._kept(case) if going_on else None) for case in self.cases]
        kept = {case.key: row for case, row in kept_rows if row is not None}
        masks = {case.key: self.outputs(case).mask for case, row in kept_rows if row is None}
        there = [key for key, mask in masks.items() if mask.exists()]
        if there and overwrite is False:
            raise OutputError(
                f"{self.folder} holds masks of {', '.join(there[:3])} that would be replaced: name "
                "another folder, or leave out --no-overwrite"
            )
        if not going_on:
            # Before the folder says that it is this run's, nothing in it may say that it is done.
            (self.folder / TABLE).unlink(missing_ok=True)
        for case in self.cases:
            for kind, output in self.outputs(case).paths.items():
                remove_leftovers(output)
                if overwrite or (kind == "stats" and not going_on):
                    output.unlink(missing_ok=True)
        remove_leftovers(path)
        remove_leftovers(self.folder / TABLE)
        write_json(path, mine)
        if any(case.folder.parts for case in self.cases) and not (self.folder / BIDS).exists():
            write_json(self.folder / BIDS, _DERIVATIVE)
        return kept

    def _write_table(self, rows: Sequence[Row]) -> None:
        """These rows, and those that the table has of cases of other folders."""
        path, mine = self.folder / TABLE, {case.key for case in self.cases}
        plain = [{name: _cell(row[name]) for name in _COLUMNS} for row in rows]
        keys = {_cell(key) for key in mine}
        others = [row for row in _read_table(path) if row["case"] not in keys]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*plain, *others], key=lambda row: str(row["case"])))
        with whole_file(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        segmenter = self.segmenter
        return {
            "version": __version__,
            "bundle": segmenter.bundle.sha256,
            "options": segmenter.plan.as_json(),
            "seed": segmenter.seed,
            "every_slice": self.every_slice,
        }


def _failed(case: Case, error: VolumeError) -> Row:
    """Without the folders of the images, which are often named after patients."""
    reason = str(error)
    for path in case.images:
        reason = reason.replace(str(path), path.name)
    return failed_row(case.key, reason)


def _differences(path: Path, mine: dict[str, Any]) -> str:
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        plain = json.loads(json.dumps(mine))
        return ", ".join(name for name in plain if theirs.get(name) != plain[name])
    except (AttributeError, ValueError):
        return "(unreadable) record"


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if set(row) == set(_COLUMNS)]
    except (OSError, ValueError, csv.Error):
        return []


def _cell(value: str | float | int) -> str | float | int:
    """Text that can be written, and that a spreadsheet does not take for a formula."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(tuple("=+-@")) else printable(value)


_DERIVATIVE = {
    "Name": "anofpdm",
    "BIDSVersion": "1.9.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "anofpdm", "Version": __version__}],
}
