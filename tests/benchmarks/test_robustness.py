"""benchmarks/robustness.py: what is done to scans, against closed forms, and its table."""

import json
from dataclasses import replace

import conditions
import nibabel as nib
import numpy as np
import pytest
import robustness
from click.testing import CliRunner
from nibabel.affines import apply_affine
from support import bundle, head, save, toy_network, write_cohort

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.array([[-0.9, 0, 0, 30], [0, 0, 3, -20], [0, -1.1, 0, 12], [0, 0, 0, 1.0]])


@pytest.fixture
def scan():
    """Values that say where they are: 50 + 2 x + 3 y + 5 z in millimetres; axes L, I, A."""
    shape = (21, 16, 9)
    where = apply_affine(AFFINE, np.moveaxis(np.indices(shape), 0, -1))
    values = (500 + where @ [2, 3, 5]).astype(np.float32)
    return conditions.Scan(values, AFFINE, values > np.quantile(values, 0.9))


def says_where_it_is(scan, inside=None):
    """Whether every voxel (of ``inside``) still holds what belongs to its place in the world."""
    where = apply_affine(scan.affine, np.moveaxis(np.indices(scan.values.shape), 0, -1))
    right = np.isclose(scan.values, 500 + where @ [2, 3, 5], atol=0.01)
    return bool(right.all() if inside is None else right[inside].all())


def test_the_upward_axis_is_found(scan):
    assert scan.upward == 1
    assert says_where_it_is(scan)


@pytest.mark.parametrize("mm", [9.0, 13.5, 14.0, 27.0, 40.0])
def test_another_field_of_view_moves_no_voxel_in_the_world(scan, mm):
    got = conditions.field_of_view(scan, mm)
    assert got.values.shape == (round(mm / 0.9), 16, round(mm / 3))
    assert got.values.dtype == np.float32
    real = got.values != np.float32(scan.background)
    assert says_where_it_is(got, real)
    kept = np.prod(np.minimum(got.values.shape, scan.values.shape))
    alike = (scan.values == np.float32(scan.background)).sum()
    assert alike < 9
    assert kept - alike <= real.sum() <= kept
    assert not got.lesion[~real].any()
    threshold = np.quantile(scan.values, 0.9)
    np.testing.assert_array_equal(got.lesion, real & (got.values > threshold))
    # About the same centre, within half a voxel.
    centers = [one.affine @ [*((np.array(one.values.shape) - 1) / 2), 1] for one in (scan, got)]
    assert (np.abs(centers[0] - centers[1])[:3] <= [0.46, 1.51, 1e-9]).all()


def test_thinned_scans_keep_their_slices_where_they_were(scan):
    for most, kept in ((16, range(16)), (5, range(2, 16, 4)), (3, range(3, 16, 6)), (1, [8])):
        got = conditions.thinned(scan, conditions.levels(scan, most))
        assert says_where_it_is(got)
        np.testing.assert_array_equal(got.values, scan.values[:, list(kept)])
        np.testing.assert_array_equal(got.lesion, scan.lesion[:, list(kept)])


def test_thinned_slices_are_the_same_after_resampling():
    values = np.arange(20.0, dtype=np.float32) * np.ones((6, 6, 1), np.float32)
    scan = conditions.Scan(values, np.diag([1, 1, 5, 1.0]), values > 9)
    used = conditions.levels(scan, 12)
    few = conditions.thinned(scan, used)
    fine = conditions.thinned(conditions.resampled(scan, (1, 1, 1)), used)
    np.testing.assert_array_equal(few.values[3, 3], np.arange(1, 20, 2))
    np.testing.assert_allclose(fine.values[3, 3], np.arange(1, 20, 2), atol=1e-4)
    np.testing.assert_allclose(fine.affine[2], few.affine[2])


def test_resampled_scans_agree_with_the_world(scan):
    got = conditions.resampled(scan, (1, 1, 2))
    np.testing.assert_allclose(got.affine[:3, :3], np.diag([1, 1, 2]), atol=1e-6)
    inside = got.values != np.float32(scan.background)
    assert inside.mean() > 0.7
    # Linear interpolation of a linear function is exact.
    assert says_where_it_is(got, inside)
    # The lesion is a half space: its border moves by less than half a voxel's diagonal.
    step = np.abs([2 * 0.9, 3 * 3, 5 * 1.1]).sum() / 2
    threshold = np.quantile(scan.values, 0.9)
    assert got.lesion[inside & (got.values > threshold + step)].all()
    assert not got.lesion[got.values < threshold - step].any()


def test_a_resampled_lesion_is_the_nearest_voxels():
    values = np.arange(5.0**3, dtype=np.float32).reshape(5, 5, 5)
    scan = conditions.Scan(values, np.diag([5, 5, 5, 1.0]), values == values[2, 2, 2])
    got = conditions.resampled(scan, (1, 1, 1)).lesion
    assert got[8:13, 8:13, 8:13].all()  # 5 mm about 10 mm: linearly, it would have no corners
    assert got.sum() == 5**3


def test_upside_down_really_is(scan):
    got = conditions.turned(scan, 180, about=0)
    np.testing.assert_array_equal(got.values, scan.values)
    assert np.linalg.det(got.affine[:3, :3]) == pytest.approx(np.linalg.det(AFFINE[:3, :3]))
    assert nib.aff2axcodes(scan.affine) == ("L", "I", "A")
    assert nib.aff2axcodes(got.affine) == ("L", "S", "P")
    center = AFFINE @ [10, 7.5, 4, 1]
    for voxel in ([0, 0, 0], [5, 15, 2]):
        before, after = (apply_affine(one.affine, voxel) for one in (scan, got))
        want = [before[0], 2 * center[1] - before[1], 2 * center[2] - before[2]]
        np.testing.assert_allclose(after, want, atol=1e-9)


def test_a_turn_in_plane_is_by_its_angle(scan):
    got = conditions.turned(scan, 10, about=2)
    center = apply_affine(AFFINE, [10, 7.5, 4])
    np.testing.assert_allclose(apply_affine(got.affine, [10, 7.5, 4]), center)
    before, after = (apply_affine(one.affine, [0, 0, 0]) - center for one in (scan, got))
    assert after[2] == pytest.approx(before[2])
    angle = np.degrees(np.angle(complex(*after[:2]) / complex(*before[:2])))
    assert angle == pytest.approx(10)
    assert np.hypot(*after[:2]) == pytest.approx(np.hypot(*before[:2]))


def test_noise_is_rician_and_the_field_reaches_thirty_percent():
    values = np.zeros((40, 40, 40), np.float32)
    values[10:30] = 1000
    scan = conditions.Scan(values, np.eye(4), values > 0)
    noisy = conditions.noisy(scan).values
    air, tissue = noisy[:10], noisy[10:30]
    assert air.mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    assert air.min() >= 0
    assert tissue.std() == pytest.approx(50, rel=0.03)
    assert tissue.mean() == pytest.approx(1000 + 50**2 / 2000, abs=1)
    share = conditions.biased(scan).values[10:30] / 1000
    assert (share.min(), share.max()) == pytest.approx((0.7, 1.3), abs=0.01)
    assert np.abs(np.diff(share, axis=0)).max() < 0.05
    assert (conditions.biased(scan).values[:10] == 0).all()
    inverted = conditions.inverted(scan).values
    np.testing.assert_array_equal(inverted, 1000 - values)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_the_skull_goes_and_the_brain_stays(axes):
    """A column of brain in a thin shell with dark fluid between, stored in either order of axes."""
    x, y, _ = np.indices((100, 90, 8))
    radius = np.hypot(x - 52, y - 43)
    values = np.where(radius < 32, 100.0, 0) + np.where((radius > 38) & (radius < 42), 90.0, 0)
    affine = np.diag([1.5, 1.5, 4, 1])[:, [*axes, 3]]
    values, radius = (np.transpose(array, axes) for array in (values, radius))
    scan = conditions.Scan(values.astype(np.float32), affine, radius < 3)
    assert scan.upward == axes.index(2)
    got = conditions.without_skull(scan)
    assert (got.values[radius < 29] == 100).all()
    assert (got.values[radius > 36] == 0).all()
    np.testing.assert_array_equal(got.lesion, scan.lesion)


def test_masks_on_another_grid_are_brought_to_the_scan(tmp_path):
    values, drawn = head((12, 14, 6)), np.zeros((24, 28, 6))
    drawn[4:8, 10:16, 2:4] = 4
    path = save(tmp_path / "scan.nii.gz", values, np.diag([4, 4, 5, 1.0]))
    fine = np.array([[2, 0, 0, -1], [0, 2, 0, -1], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    got = conditions.read_scan(path, save(tmp_path / "seg.nii.gz", drawn, fine, np.uint8))
    want = np.zeros((12, 14, 6), bool)
    want[2:4, 5:8, 2:4] = True
    np.testing.assert_array_equal(got.lesion, want)
    np.testing.assert_array_equal(got.values, values)


class FoundMask:
    """A Segmenter that marks what lies above a threshold, and notes what is too bright."""

    def __init__(self, segmenter):
        self.segmenter = segmenter

    def segment(self, image):
        values = image.get_fdata()
        found = self.segmenter.segment(image)
        note = ("volume unlike what the model was calibrated on",) if values.max() > 400 else ()
        return replace(found, mask=(values > 150).astype(np.uint8), notes=("other", *note))


def test_a_row_says_what_was_found():
    segmenter = FoundMask(Segmenter(bundle(), NumpyBackend(toy_network)))
    affine = np.diag([7.5, 7.5, 5, 1.0])
    values = head()
    lesion = values > 140
    half = lesion & (np.arange(24)[:, None, None] % 2 == 0)
    scans = [
        conditions.Scan(values, affine, lesion),
        conditions.Scan(values * 4, affine, half),
        conditions.Scan(values, affine, np.zeros_like(lesion)),
        conditions.Scan(np.full_like(values, 7), affine, lesion),
    ]
    row = robustness.measure(segmenter, "some", scans)
    marked = [values > 150, values * 4 > 150]
    want = [
        2 * (m & d).sum() / (m.sum() + d.sum()) for m, d in zip(marked, (lesion, half), strict=True)
    ]
    assert want[0] != pytest.approx(want[1])
    want.append(0.0)  # one with a lesion is refused
    np.testing.assert_allclose(row["dice"], want)
    assert row["dice_mean"] == pytest.approx(np.mean(want))
    assert (row["volumes"], row["implausible"], len(row["refused"])) == (4, 1, 1)
    assert "same value" in row["refused"][0]
    assert row["drawn_unhealthy"] == sum(one.any(axis=(0, 1)).sum() for one in (lesion, half))
    assert row["slices"] == 3 * len(segmenter.segment(scans[0].image).slices)
    assert f"{np.mean(want):.3f} [{min(want):.2f}, {max(want):.2f}]" in robustness.line(row)


def test_the_command_has_a_row_for_every_condition(tmp_path, monkeypatch):
    write_cohort(tmp_path / "lgg", 4, ("a",))
    (tmp_path / "lgg/patients.csv").write_text(
        "patient,split\n" + "".join(f"P0{i},{'val' if i % 2 else 'train'}\n" for i in range(4))
    )
    write_cohort(tmp_path / "ms", 2, ("a", "t1"))
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    monkeypatch.setattr(robustness.Segmenter, "load", lambda *args, **options: segmenter)
    result = tmp_path / "rows.json"
    arguments = [str(tmp_path / "lgg"), "--split", "val", "--slices", "3", "--patients", "2",
                 "--other", str(tmp_path / "ms"), "--json", str(result)]  # fmt: skip
    done = CliRunner().invoke(robustness.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = json.loads(result.read_text())["rows"]
    names = [row["condition"] for row in rows]
    assert names == [
        *conditions.CONDITIONS, "ms, P00", "ms, P01", "control: T1 in place of A",
        *conditions.CONTROLS,
    ]  # fmt: skip
    by_name = dict(zip(names, rows, strict=True))
    assert by_name["as it is"]["volumes"] == 2
    assert len(by_name["as it is"]["dice"]) == 2  # P00 and P02, of another split, have no lesion
    assert len(by_name["ms, P00"]["dice"]) == 0
    assert by_name["as it is"]["slices"] <= 2 * 3
    assert by_name["ms, P01"]["volumes"] == 1
    # Only the affine changes, and not which axis points where.
    for key in ("dice", "called_unhealthy", "slices"):
        assert by_name["turned by 10 degrees in the affine"][key] == by_name["as it is"][key]
    for name in names:
        assert f"| {name} |" in done.output
