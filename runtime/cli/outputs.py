"""The files that a segmented volume is written to: all of them or none."""

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
from ..report.trace import trace
from ..results import Segmentation
from ..util.files import whole_files, writable_folder, write_json
from ..util.optional import check_installed
from ..volume.nifti import save_image
from .source import Source, study_date

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
    """Where to write what."""

    paths: Mapping[str, Path]  # by kind, see SUFFIXES; the mask is among them

    @classmethod
    def named(cls, name: str, folder: Path, kinds: Iterable[str]) -> "Outputs":
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
        sources = [path for path in inputs if path.exists()]
        used: dict[Path, str] = {}
        for kind, path in self.paths.items():
            if path.exists() and any(path.samefile(source) for source in sources):
                raise OutputError(f"cannot write {path}: it is the input; choose another name")
            if path.resolve() in used:
                raise OutputError(
                    f"cannot write {path}: it is {used[path.resolve()]}; choose another name"
                )
            if not path.name.endswith(SUFFIXES[kind]):
                wanted = " or ".join(reversed(SUFFIXES[kind]))
                raise OutputError(f"cannot write {path}: name it {wanted}")
            writable_folder(path)
            if path.exists() and not overwrite:
                raise OutputError(f"{path} is there already: remove it, or give --overwrite")
            used[path.resolve()] = f"the {kind} as well"

    def write(self, segmentation: Segmentation, source: Source, name: str) -> dict[str, Any]:
        """Write them: as far as renames can be one, all or none.

        Parameters
        ----------
        segmentation : of the source; without ``seconds``, files do not say when they were made, and
            the same input gives the same bytes
        name : of the case

        Returns
        -------
        The statistics; see :func:`anofpdm.runtime.report.stats.stats`

        Raises
        ------
        OutputError
            If a file cannot be written.
        VolumeError
            If the images are gone, or cannot be referred to in DICOM.
        """
        segmentation = replace(
            segmentation, inputs=source.inputs, notes=(*source.notes, *segmentation.notes)
        )
        statistics = stats(segmentation, name)
        ordered = {kind: self.paths[kind] for kind in SUFFIXES if kind in self.paths}
        with whole_files(ordered) as temporary:
            save_image(segmentation.image, temporary["mask"])
            if "map" in temporary:
                save_image(segmentation.anomaly_map(), temporary["map"])
            if "stats" in temporary:
                write_json(temporary["stats"], statistics)
            if "trace" in temporary:
                write_json(temporary["trace"], trace(segmentation, name))
            if "preview" in temporary:
                write_preview(temporary["preview"], segmentation, name)
            if "report" in temporary:
                write_report(temporary["report"], segmentation, name)
            if "dicom-seg" in temporary:
                _write_seg(temporary["dicom-seg"], segmentation, source)
        return statistics


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


def _write_seg(path: Path, segmentation: Segmentation, source: Source) -> None:
    series, bundle = source.check_seg(path), segmentation.bundle
    write_seg(
        path,
        segmentation.mask,
        series,
        model=bundle.manifest.name,
        version=__version__,
        bundle_sha256=bundle.sha256,
        when=study_date(series) if segmentation.seconds is None else None,
    )
