"""Lesions against boxes planted by hand; statistics against the masks that they must give again."""

import csv
import hashlib
import io
import json
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from support import bundle, head, recalibrated, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.source import describe_inputs
from anofpdm.runtime.errors import OptionsError, OutputError, VolumeError
from anofpdm.runtime.report.lesions import find_lesions
from anofpdm.runtime.report.stats import (
    ROW,
    failed_row,
    mask_sha256,
    options_from_stats,
    stats,
    stats_row,
)
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json

# 2, 3 and 4 mm along axes that lead about to the patient's front, left and feet, and lie oblique.
TILT, TURN = np.radians(10), np.radians(20)
ABOUT_X = [[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]
ABOUT_Z = [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]
LEADING = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]], float)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array(ABOUT_Z) @ ABOUT_X @ LEADING @ np.diag([2.0, 3.0, 4.0])
OBLIQUE[:3, 3] = 17.0, -40.0, 5.0
AFFINE = np.diag([7.5, 7.5, 5.0, 1.0])


def planted():
    """A box of 4 x 3 x 2 voxels, a corner of which touches a voxel beyond; and one of 2 x 2 x 2."""
    mask = np.zeros((20, 18, 12), np.uint8)
    mask[2:4, 3:5, 1:3] = 1
    mask[10:14, 6:9, 5:7] = 1
    mask[14, 9, 7] = 1
    return mask


@pytest.mark.parametrize(("unit", "length"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3)])
def test_lesions_are_the_boxes_that_were_planted(unit, length):
    """Whatever unit the header measures in: 2 x 3 x 4 mm, 0.024 ml a voxel."""
    affine = np.diag([length, length, length, 1.0]) @ OBLIQUE
    image = nib.Nifti1Image(planted(), affine)
    image.header.set_xyzt_units(unit)
    large, small = find_lesions(planted(), image)
    assert (large.voxels, small.voxels) == (25, 8)
    assert (large.volume_ml, small.volume_ml) == pytest.approx((0.6, 0.192))
    assert large.box == ((10, 14), (6, 9), (5, 7))
    assert small.box == ((2, 3), (3, 4), (1, 2))
    # The third axis leads to the feet: of twelve levels, index 5 is level 6 from the feet up.
    assert (large.levels, small.levels) == ((4, 6), (9, 10))
    assert small.centroid_mm == pytest.approx((OBLIQUE @ [2.5, 3.5, 1.5, 1])[:3])
    centre = (24 * np.array([11.5, 7.0, 5.5]) + [14, 9, 7]) / 25
    assert large.centroid_mm == pytest.approx((OBLIQUE @ [*centre, 1])[:3])


def test_levels_follow_the_axial_axis_wherever_it_is():
    """Sagittal storage: the axes lead to the patient's back, top and right."""
    affine = np.array([[0, 0, 2.0, 0], [-3.0, 0, 0, 0], [0, 4.0, 0, -9], [0, 0, 0, 1]])
    (lesion,) = find_lesions(planted()[5:], nib.Nifti1Image(planted()[5:], affine))
    assert lesion.levels == (6, 9)
    assert lesion.volume_ml == pytest.approx(25 * 0.024)


def test_a_mask_with_nothing_in_it_has_no_lesions():
    empty = np.zeros((4, 5, 6, 1), np.uint8)
    assert find_lesions(empty, nib.Nifti1Image(empty, np.eye(4))) == ()


def chosen(**changes):
    """A Segmenter that calls some slices of a head healthy and some not, away from defaults."""
    toy = bundle()
    slices = Segmenter(toy, NumpyBackend(toy_network)).segment(head(), affine=AFFINE).slices
    toy = recalibrated(toy, Cos_w=float(np.median([result.cosine for result in slices])))
    options = Options(sub_map="gradient", **changes)
    return toy, Segmenter(toy, NumpyBackend(toy_network), options=options, seed=7)


def hashed(segmentation, *paths):
    """The segmentation of these files, which says what they hold."""
    return replace(segmentation, inputs=describe_inputs(paths, False))


def test_statistics_are_enough_to_make_the_mask_again(tmp_path):
    volume = save(tmp_path / "case 1.nii.gz", head())
    for every_slice, Q in ((False, None), (True, 0.001)):
        toy, segmenter = chosen(Q=Q)
        segmentation = segmenter.segment(nib.load(volume), every_slice=every_slice)
        segmentation = hashed(segmentation, volume)
        assert segmentation.mask.any()
        write_json(tmp_path / "stats.json", stats(segmentation, "case 1"))
        read = json.loads((tmp_path / "stats.json").read_text())
        assert read == stats(segmentation, "case 1")
        # From here on only what was written, the bundle and the file that has this fingerprint.
        made_by = read["provenance"]
        (fingerprint,) = read["inputs"][0]["files_sha256"].values()
        assert fingerprint == hashlib.sha256(volume.read_bytes()).hexdigest()
        assert made_by["files_sha256"] == dict(toy.manifest.files)
        again = Segmenter(
            toy, NumpyBackend(toy_network), options=options_from_stats(read), seed=made_by["seed"]
        ).segment(nib.load(volume), every_slice=made_by["every_slice"])
        voxels = again.mask.astype(np.uint8).tobytes(order="C")
        assert hashlib.sha256(voxels).hexdigest() == read["mask"]["sha256"]
        other = Segmenter(toy, NumpyBackend(toy_network)).segment(nib.load(volume))
        assert mask_sha256(other.mask) != read["mask"]["sha256"]


def test_statistics_of_another_schema_are_refused():
    with pytest.raises(OptionsError, match="have schema 1, this version of anofpdm reads 2: segm"):
        options_from_stats({"schema_version": 1, "provenance": {}})


def test_statistics_describe_the_result(tmp_path):
    """On an image whose third axis leads to the feet."""
    affine = np.diag([7.5, 7.5, -5.0, 1.0])
    volume = save(tmp_path / "upside.nii", head()[..., ::-1], affine)
    _, segmenter = chosen()
    segmentation = segmenter.segment(nib.load(volume))
    content = stats(segmentation, "upside")
    assert content["case"] == "upside"
    assert segmentation.mask.any()
    assert content["inputs"][0]["shape"] == [24, 28, 10]
    assert content["inputs"][0]["voxel_mm"] == [7.5, 7.5, 5.0]
    assert content["volume_ml"] == pytest.approx(segmentation.mask.sum() * 0.28125)
    total = sum(lesion["volume_ml"] for lesion in content["lesions"])
    assert total == pytest.approx(content["volume_ml"])
    assert sum(entry["marked_ml"] for entry in content["slices"]) == pytest.approx(total)
    assert content["slices_processed"] + content["slices_left_out"] == 10
    assert 0 < content["unhealthy_slices"] < content["slices_processed"]
    for entry, result in zip(content["slices"], segmentation.slices, strict=True):
        assert (entry["level"], entry["unhealthy"]) == (result.key, result.unhealthy)
        assert entry["position_mm"] == pytest.approx(-5.0 * (9 - result.key))
        marked = segmentation.mask[..., 9 - result.key].sum() * 0.28125
        assert entry["marked_ml"] == pytest.approx(marked)
        assert result.unhealthy or marked == 0
    versions = content["provenance"]["versions"]
    assert versions["numpy"] == np.__version__
    assert versions["python"] == sys.version.split()[0]


def test_statistics_name_no_folders(tmp_path):
    """Not even in notes: modalities that are resampled are named there with their paths."""
    folder = tmp_path / "Jane Doe"
    folder.mkdir()
    first = save(folder / "a.nii", head())
    second = save(folder / "b.nii", head((12, 14, 10)), np.diag([15.0, 15.0, 5.0, 1.0]))
    segmenter = Segmenter(bundle(channels=2), NumpyBackend(toy_network))
    images = [nib.load(path) for path in (first, second)]
    segmentation = segmenter.segment(images, names=[str(first), str(second)])
    content = stats(hashed(segmentation, first, second), "case")
    assert content["provenance"]["notes"] == ["b.nii was resampled onto the grid of a.nii"]
    assert "Jane" not in json.dumps(content)


def test_arrays_and_pairs_of_files(tmp_path):
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    content = stats(segmenter.segment(head(), affine=AFFINE), "from the scanner")
    assert (content["case"], content["inputs"]) == ("from the scanner", [])
    nib.save(nib.Nifti1Pair(head(), AFFINE), tmp_path / "pair.img")
    header, voxels = tmp_path / "pair.hdr", tmp_path / "pair.img"
    content = stats(hashed(segmenter.segment(nib.load(header)), header), "pair")
    assert content["inputs"][0]["files_sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (header, voxels)
    }


def test_rows_of_a_table(tmp_path):
    volume = save(tmp_path / "a.b.nii.gz", head())
    _, segmenter = chosen()
    row = stats_row(stats(segmenter.segment(nib.load(volume)), "a.b"))
    failed = failed_row("b", VolumeError("b.nii holds\nNaN"))
    assert tuple(row) == tuple(failed) == ROW
    table = io.StringIO()
    writer = csv.DictWriter(table, ROW)
    writer.writerows([row, failed])
    first, second = csv.DictReader(io.StringIO(table.getvalue()), ROW)
    assert (first["case"], first["status"], first["reason"]) == ("a.b", "ok", "")
    assert float(first["largest_ml"]) <= float(first["volume_ml"])
    assert (second["status"], second["reason"]) == ("failed", "b.nii holds NaN")


def test_statistics_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write_json(tmp_path / "no" / "stats.json", {})
