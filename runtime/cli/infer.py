"""``anofpdm-infer``: volumes in, masks out."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from ..bundle.bundle import DEFAULT, open_bundle
from ..bundle.options import Options
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
from .console import Console, version_line
from .discovery import find_cases, ignored_files
from .outputs import KINDS, check_kinds
from .request import FolderRequest, VolumeRequest, parse_request
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

Exit codes: 0 done, 2 user error (one line says what to correct), 3 some cases of a folder failed,
130 interrupted.

For research, not for diagnosis.
"""


class _InferCommand(OneLineCommand):
    groups = {  # noqa: RUF012
        "Input": ("flair", "t1", "t1ce", "t2", "others", "series_uid"),
        "Output": ("output", "map_file", "stats", "preview", "report", "trace", "dicom_seg", "also",
                   "overwrite", "every_slice"),
        "Model": ("bundle", "preset"),
        "Run": ("device", "threads", "slots", "seed", "quiet", "verbose", "version", "help"),
    }  # fmt: skip


@click.command(cls=_InferCommand, epilog=_EXAMPLES)
@click.argument("volumes", nargs=-1, type=_FILE)
@click.option("-o", "--output", type=_FILE, help="Mask file; for a folder of cases, the folder of "
              "results.  [default: named after the input, in the current folder]")  # fmt: skip
@click.option("--flair", type=_FILE, help="FLAIR volume, in place of VOLUMES.")
@click.option("--t1", type=_FILE, help="T1 volume.")
@click.option("--t1ce", type=_FILE, help="T1 volume with contrast agent.")
@click.option("--t2", type=_FILE, help="T2 volume.")
@click.option("--modality", "others", multiple=True, metavar="NAME=FILE",
              help="Volume of a further modality.")  # fmt: skip
@click.option("--series", "series_uid", metavar="UID",
              help="DICOM series to read, where a folder holds several.")  # fmt: skip
@click.option("--map", "map_file", type=_FILE, help="Anomaly map H, float32 (NIfTI).")
@click.option("--stats", type=_FILE, help="Volumes, lesions, image-level decisions, and all it "
              "takes to make the mask again (JSON).")  # fmt: skip
@click.option("--preview", type=_FILE, help="Picture of slices, mask and map (PNG).")
@click.option("--report", type=_FILE, help="One page to read or print (HTML).")
@click.option("--trace", type=_FILE, help="Curves and decisions of every slice (JSON).")
@click.option("--dicom-seg", type=_FILE, help="Mask of a DICOM series as DICOM SEG.")
@click.option("--also", multiple=True, type=click.Choice(KINDS), help="Further output next to the "
              "mask, with a name made of the case's: for folders, or to save typing.")  # fmt: skip
@click.option("--overwrite/--no-overwrite", default=None, help="Replace existing files.  [default: "
              "yes for one volume; a folder's run goes on where it was interrupted]")  # fmt: skip
@click.option("--every-slice", is_flag=True, help="Segment healthy slices, too: marks something on "
              "every slice.")  # fmt: skip
@bundle_option
@preset_option
@device_option
@threads_option
@slots_option
@seed_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print the device, the preset and the files.")
@click.option("--version", is_flag=True, help="Versions of the package, the model and the engine.")
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
    map_file: Path | None,
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
    device: str,
    threads: int | None,
    slots: int | None,
    seed: int,
    quiet: bool,
    verbose: bool,
    version: bool,
) -> None:
    """Segment anomalies in brain MRI.

    VOLUMES is one NIfTI file a modality in the order of the bundle, one 4-D file, the folder of a
    BraTS case or of a DICOM series; or a folder of many cases (such files or folders, or BIDS). The
    mask (0 or 1) has the first volume's grid.
    """
    model = open_bundle(bundle or DEFAULT)
    if version:
        click.echo(version_line(model))
        return
    modalities = model.manifest.modalities
    named = _by_name(others, {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2})
    files = {"map": map_file, "stats": stats, "preview": preview, "report": report,
             "trace": trace, "dicom-seg": dicom_seg}  # fmt: skip
    request = parse_request(volumes, named, output, _given(files), also, modalities)
    console = Console(quiet, verbose)

    def load() -> Segmenter:
        options = Options(preset=preset)
        return Segmenter.load(
            model, options=options, device=device, threads=threads, slots=slots, seed=seed
        )

    if isinstance(request, VolumeRequest):
        _segment_volume(request, load, console, series_uid, every_slice, overwrite is not False)
        return
    if series_uid:
        raise VolumeError(
            f"--series goes with one DICOM folder and a mask, not with all of {request.root}: give "
            "-o mask.nii.gz"
        )
    sys.exit(_segment_folder(request, modalities, load, console, every_slice, overwrite))


def _segment_volume(
    request: VolumeRequest,
    load: Callable[[], Segmenter],
    console: Console,
    series_uid: str | None,
    every_slice: bool,
    overwrite: bool,
) -> None:
    outputs = request.outputs
    outputs.check(request.paths, overwrite)
    source = open_source(request.paths, request.dicom, series_uid)
    if "dicom-seg" in outputs.paths:
        source.check_seg(outputs.paths["dicom-seg"])
    with load() as segmenter:
        progress = console.slice_progress(segmenter)
        segmentation = segmenter.segment(
            source.images, names=source.names, every_slice=every_slice, progress=progress
        )
    outputs.write(segmentation, source, request.name)
    for note in (*source.notes, *segmentation.notes):
        console.note(note)
    preset, default = segmenter.plan.preset, segmenter.bundle.default
    console.result(
        f"{segmentation.unhealthy_slices} of {len(segmentation.slices)} slices unhealthy, "
        f"{'all segmented, ' if every_slice else ''}{segmentation.volume_ml:.1f} ml marked, "
        f"{segmentation.seconds:.0f} s{'' if preset == default else f', preset {preset}'}: "
        f"mask in {outputs.mask}"
    )
    console.written(outputs.paths)


def _segment_folder(
    request: FolderRequest,
    modalities: tuple[str, ...],
    load: Callable[[], Segmenter],
    console: Console,
    every_slice: bool,
    overwrite: bool | None,
) -> int:
    """The exit code."""
    root, folder = request.root, request.folder
    cases = find_cases(root, modalities)
    if ignored := ignored_files(root, cases):
        few = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        console.note(f"{len(ignored)} NIfTI files of {root} are no cases: {few}")
    check_folder(folder)
    if folder.resolve() == root.resolve():
        raise OutputError(f"cannot write to {folder}: it is the input; choose another folder")
    check_kinds(request.kinds)
    with load() as segmenter:
        batch = Batch(segmenter, cases, folder, request.kinds, every_slice)
        rows = batch.run(overwrite, console.row, console.case_progress(segmenter, len(cases)))
    count = Counter(str(row["status"]) for row in rows)
    failed = len(rows) - count["ok"]
    done = f"{count['ok']} of {len(rows)} cases done"
    console.result(f"{done}{f', {failed} failed' if failed else ''}: table in {folder / TABLE}")
    return SOME_FAILED if failed else 0


def _given(paths: Mapping[str, Path | None]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path is not None}


def _by_name(others: tuple[str, ...], paths: Mapping[str, Path | None]) -> dict[str, Path]:
    """Files by the name of their modality."""
    named = _given(paths)
    for text in others:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise VolumeError(f"--modality {text}: write NAME=FILE")
        if name in named:
            raise VolumeError(f"{name} is given twice: name one file a modality")
        named[name] = Path(path)
    return named
