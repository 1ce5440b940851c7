"""``anofpdm-infer``: volumes in, masks out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from ..bundle.bundle import DEFAULT, open_bundle
from ..bundle.options import Setup
from ..errors import OutputError, VolumeError
from ..segmenter import Segmenter
from ..util.files import check_folder
from .arguments import (
    FilePath,
    OneLineCommand,
    bundle_option,
    device_option,
    preset_option,
    reports_errors,
    seed_option,
    slots_option,
    threads_option,
)
from .batch import TABLE, Batch
from .console import Talk, version_line
from .discovery import Case, find_cases, left_out
from .outputs import KINDS, check_kinds
from .request import Cases, OneVolume, asked
from .source import open_source

SOME_FAILED = 3
_FILE = FilePath()
_EXAMPLES = """
Examples:

\b
  anofpdm-infer flair.nii.gz -o mask.nii.gz
  anofpdm-infer flair.nii.gz -o mask.nii.gz --map map.nii.gz --report report.html
  anofpdm-infer DICOM_SERIES/ -o mask.nii.gz --dicom-seg seg.dcm
  anofpdm-infer BIDS/ -o derivatives/ --also preview

Exit codes: 0 done, 2 something to mend (one line says what), 3 some cases of a folder failed, 130
interrupted.

For research, not for diagnosis.
"""


@click.command(cls=OneLineCommand, epilog=_EXAMPLES)
@click.argument("volumes", nargs=-1, type=_FILE)
@click.option("-o", "--output", type=_FILE, help="The mask; for a folder of cases, a folder.  "
              "[default: named after the input, in the current folder]")  # fmt: skip
@click.option("--flair", type=_FILE, help="The FLAIR volume, instead of VOLUMES.")
@click.option("--t1", type=_FILE, help="Likewise.")
@click.option("--t1ce", type=_FILE, help="Likewise.")
@click.option("--t2", type=_FILE, help="Likewise.")
@click.option("--modality", "others", multiple=True, metavar="NAME=FILE", help="Any other.")
@click.option("--series", "series_uid", metavar="UID", help="Of several DICOM series, this one.")
@click.option("--map", "anomaly_map_file", type=_FILE, help="Write the anomaly map, float32.")
@click.option("--stats", type=_FILE, help="Write volumes, lesions, verdicts, and what reproduces "
              "the mask (JSON).")  # fmt: skip
@click.option("--preview", type=_FILE, help="Write a picture (PNG).")
@click.option("--report", type=_FILE, help="Write one page with all of it (HTML).")
@click.option("--trace", type=_FILE, help="Write the curves and decisions of every slice (JSON).")
@click.option("--dicom-seg", type=_FILE, help="Write a DICOM SEG of a DICOM series.")
@click.option("--also", multiple=True, type=click.Choice(KINDS), help="Write it beside the mask: "
              "for a folder of cases, or without a name of your own.")  # fmt: skip
@click.option("--overwrite/--no-overwrite", default=None, help="Replace what is there.  [default: "
              "a file is replaced; a folder's run goes on where it was interrupted]")  # fmt: skip
@click.option("--every-slice", is_flag=True, help="Segment slices that are found healthy, too: "
              "marks something on every slice.")  # fmt: skip
@bundle_option
@preset_option
@seed_option
@device_option
@slots_option
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is used and written.")
@click.option("--version", is_flag=True, help="Of the package, the model and the engine.")
@reports_errors
def main(
    volumes: tuple[Path, ...],
    output: Path | None,
    flair: Path | None,
    t1: Path | None,
    t1ce: Path | None,
    t2: Path | None,
    others: tuple[str, ...],
    series_uid: str | None,
    anomaly_map_file: Path | None,
    stats: Path | None,
    preview: Path | None,
    report: Path | None,
    trace: Path | None,
    dicom_seg: Path | None,
    also: tuple[str, ...],
    overwrite: bool | None,
    every_slice: bool,
    bundle: Path | None,
    preset: str | None,
    seed: int,
    device: str,
    slots: int | None,
    threads: int | None,
    quiet: bool,
    verbose: bool,
    version: bool,
) -> None:
    """Segment anomalies in brain MRI.

    VOLUMES is one NIfTI file a modality in the order of the bundle, one 4-D file, the folder of a
    BraTS case or of a DICOM series; or a folder of many cases (such files or folders, or BIDS). The
    mask (0 or 1) has the first volume's grid.
    """
    opened = open_bundle(bundle or DEFAULT)
    if version:
        click.echo(version_line(opened))
        return
    files = {"map": anomaly_map_file, "stats": stats, "preview": preview, "report": report,
             "trace": trace, "dicom-seg": dicom_seg}  # fmt: skip
    named = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    what = asked(
        volumes,
        _by_name(others, _given(named)),
        output,
        _given(files),
        also,
        opened.manifest.modalities,
    )
    talk = Talk(device, quiet, verbose)

    def load() -> Segmenter:
        return Segmenter.load(
            opened, setup=Setup(preset=preset), device=device, threads=threads, slots=slots,
            seed=seed,
        )  # fmt: skip

    if isinstance(what, OneVolume):
        _volume(what, load, talk, series_uid, every_slice, overwrite is not False)
    else:
        if series_uid:
            raise VolumeError(
                f"--series goes with one DICOM folder and a mask, not with all of {what.root}: "
                "give -o mask.nii.gz"
            )
        cases = find_cases(what.root, opened.manifest.modalities)
        names = left_out(what.root, cases)
        if names:
            few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            talk.note(f"note: {len(names)} NIfTI files of {what.root} are no cases: {few}")
        sys.exit(_cases(what, cases, load, talk, every_slice, overwrite))


def _volume(
    what: OneVolume,
    load: Callable[[], Segmenter],
    talk: Talk,
    series_uid: str | None,
    every_slice: bool,
    overwrite: bool,
) -> None:
    what.outputs.check(what.paths, overwrite)
    source = open_source(what.paths, series_uid)
    if "dicom-seg" in what.outputs.paths:
        source.check_seg(what.outputs.paths["dicom-seg"])
    with load() as segmenter:
        found = segmenter.segment(
            source.images,
            names=source.names,
            every_slice=every_slice,
            progress=talk.progress(segmenter),
        )
    what.outputs.write(segmenter, found, source, every_slice)
    for note in (*source.notes, *found.notes):
        talk.note(f"note: {note}")
    setup, opened = segmenter.setup, segmenter.bundle
    talk.result(
        f"{found.unhealthy_slices} of {len(found.slices)} slices unhealthy, "
        f"{'all segmented, ' if every_slice else ''}"
        f"{found.volume_ml:.1f} ml marked, {found.seconds:.0f} s"
        f"{'' if setup.preset == opened.default else f', preset {setup.preset}'}: "
        f"mask in {what.outputs.mask}"
    )
    talk.wrote(what.outputs)


def _cases(
    what: Cases,
    cases: Sequence[Case],
    load: Callable[[], Segmenter],
    talk: Talk,
    every_slice: bool,
    overwrite: bool | None,
) -> int:
    """The exit code."""
    check_folder(what.folder)
    if what.folder.resolve() == what.root.resolve():
        raise OutputError(f"cannot write to {what.folder}: it is the input; choose another folder")
    check_kinds(what.kinds)
    with load() as segmenter:
        batch = Batch(segmenter, cases, what.folder, what.kinds, every_slice)
        rows = batch.run(overwrite, talk.row, talk.cases(segmenter, len(cases)))
    count = Counter(str(row["status"]) for row in rows)
    failed = len(rows) - count["ok"]
    told = f"{count['ok']} of {len(rows)} cases done"
    talk.result(f"{told}{f', {failed} failed' if failed else ''}: table in {what.folder / TABLE}")
    return SOME_FAILED if failed else 0


def _given(paths: Mapping[str, Path | None]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path is not None}


def _by_name(others: tuple[str, ...], named: dict[str, Path]) -> dict[str, Path]:
    for text in others:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise VolumeError(f"--modality {text}: write NAME=FILE")
        if name in named:
            raise VolumeError(f"{name} is given twice: name one file a modality")
        named[name] = Path(path)
    return named
