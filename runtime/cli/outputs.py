"""The files that a segmented volume is written to: all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anofpdm import __version__

from ..dicom.seg import write_seg
from ..errors import OutputError
from ..report.page import write_report
from ..report.preview import write_preview
from ..report.stats import stats
from ..report.trace import write_trace
from ..results import Segmentation
from ..segmenter import Segmenter
from ..util.files import whole_files, writable_folder, write_json
from ..util.optional import check_installed
from ..volume.nifti import save_image
from .source import Source, taken_on

# By kind, how names end; in this order files are put in place. The statistics come last: where they
# are, all is there.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "map": (".nii.gz", ".nii"),
    "trace": (".json",),
    "preview": (".png",),
    "report": (".html", ".htm"),
    "dicom-seg": (".dcm",),
    "mask": (".nii.gz", ".nii"),
    "stats": (".json",),
}
# By kind, the package and the extra that installs it.
_NEEDS = {"preview": ("matplotlib", "report"), "report": ("matplotlib", "report"),
          "dicom-seg": ("highdicom", "dicom")}  # fmt: skip
KINDS = tuple(kind for kind in SUFFIXES if kind != "mask")


@dataclass(frozen=True)
class Outputs:
    """``paths``: where to write, by kind (the keys of :data:`SUFFIXES`), the mask among them."""

    paths: Mapping[str, Path]

    @classmethod
    def named(cls, name: str, folder: Path, kinds: Iterable[str]) -> Outputs:
        """Named as BIDS names derivatives: ``NAME_desc-anofpdm_mask.nii.gz``."""
        stem = f"{name}_desc-anofpdm_"
        return cls({kind: folder / f"{stem}{kind.replace('dicom-', '')}{SUFFIXES[kind][0]}"
                    for kind in ("mask", *kinds)})  # fmt: skip

    @property
    def mask(self) -> Path:
        """Where the mask goes."""
        return self.paths["mask"]

    def check(self, inputs: Iterable[Path], overwrite: bool = True) -> None:
        """See that every file could be written, and that none is an input or named twice.

        Raises
        ------
        OutputError
            If not; or if one is there already, and is not to be overwritten.
        MissingExtraError
            See :func:`check_kinds`.
        """
        check_kinds(self.paths)
        given = [path for path in inputs if path.exists()]
        taken: dict[Path, str] = {}
        for kind, path in self.paths.items():
            if path.exists() and any(path.samefile(one) for one in given):
                raise OutputError(f"cannot write {path}: it is the input; choose another name")
            if path.resolve() in taken:
                raise OutputError(
                    f"cannot write {path}: it is {taken[path.resolve()]}; choose another name"
                )
            if not path.name.endswith(SUFFIXES[kind]):
                wanted = " or ".join(reversed(SUFFIXES[kind]))
                raise OutputError(f"cannot write {path}: name it {wanted}")
            writable_folder(path)
            if path.exists() and not overwrite:
                raise OutputError(f"{path} is there already: remove it, or give --overwrite")
            taken[path.resolve()] = f"the {kind} as well"

    def write(
        self, segmenter: Segmenter, found: Segmentation, source: Source, every_slice: bool = False,
        case: str | None = None, timed: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Write them: as far as renames can be one, all or none.

        Parameters
        ----------
        case : what to call the volume; None for its file's name
        timed : whether what is written says how long it took, and when; without that, the same
            input gives the same bytes

        Returns
        -------
        The statistics; see :func:`anofpdm.runtime.report.stats.stats`

        Raises
        ------
        OutputError
            If one cannot be written.
        VolumeError
            If the images are gone, or cannot be referred to in DICOM.
        """
        found = replace(found, notes=(*source.notes, *found.notes))
        said = stats(
            segmenter, found, source.paths, every_slice, case, timed=timed, inputs=source.inputs
        )
        title = str(said["case"])
        ordered = {kind: self.paths[kind] for kind in SUFFIXES if kind in self.paths}
        with whole_files(ordered) as beside:
            save_image(found.image, beside["mask"])
            if "map" in beside:
                save_image(found.anomaly_map(), beside["map"])
            if "stats" in beside:
                write_json(beside["stats"], said)
            if "trace" in beside:
                write_trace(beside["trace"], segmenter, found, source.paths, every_slice)
            if "preview" in beside:
                write_preview(
                    beside["preview"], found, title, modalities=said["provenance"]["scored"]
                )
            if "report" in beside:
                write_report(beside["report"], found, said, title)
            if "dicom-seg" in beside:
                _write_seg(beside["dicom-seg"], segmenter, found, source, timed)
        return said


def check_kinds(kinds: Iterable[str]) -> None:
    """See that what writes these is installed.

    Raises
    ------
    MissingExtraError
        If not.
    """
    for kind in kinds:
        if kind in _NEEDS:
            check_installed(*_NEEDS[kind])


def _write_seg(
    path: Path, segmenter: Segmenter, found: Segmentation, source: Source, timed: bool
) -> None:
    series, bundle = source.check_seg(path), segmenter.bundle
    write_seg(
        path,
        found.mask,
        series,
        model=bundle.manifest.name,
        version=__version__,
        bundle_sha256=bundle.sha256,
        when=None if timed else taken_on(series),
    )
