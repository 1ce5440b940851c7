"""Where a volume comes from, and what results say of it."""

from datetime import datetime
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from dicom_files import write_series
from support import head, save

from anofpdm.runtime.cli.source import describe_inputs, open_source, study_date
from anofpdm.runtime.errors import OutputError, VolumeError


def test_nifti_files_are_no_series(tmp_path):
    path = save(tmp_path / "flair.nii.gz", head())
    with pytest.raises(VolumeError, match="no DICOM folder: --series goes with one"):
        open_source([path], False, series_uid="1.2.3")
    with pytest.raises(VolumeError, match="is no DICOM series: a DICOM SEG refers to DICOM images"):
        open_source([path], False).check_seg(tmp_path / "seg.dcm")


def test_a_seg_is_not_written_over_an_image_of_its_series(tmp_path):
    write_series(tmp_path / "series", head((32, 32, 6)), np.diag([7.5, 7.5, 5.0, 1.0]))
    source = open_source([tmp_path / "series"], True)
    first = min((tmp_path / "series").iterdir())
    with pytest.raises(OutputError, match="it lies among the input's"):
        source.check_seg(first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20240229", datetime(2024, 2, 29)), ("", datetime(1970, 1, 1)), ("x", datetime(1970, 1, 1))],
)
def test_the_moment_of_a_seg_is_its_study_s_day(text, expected):
    assert study_date(SimpleNamespace(references=[{"StudyDate": text}])) == expected


def test_a_single_dicom_file_has_the_fingerprint_of_its_bytes(tmp_path):
    write_series(tmp_path / "series", head((32, 32, 6)), np.diag([7.5, 7.5, 5.0, 1.0]))
    first = min((tmp_path / "series").iterdir())
    (described,) = describe_inputs([first], True)
    assert described.files_sha256 == {first.name: sha256(first.read_bytes()).hexdigest()}
