"""Pictures: the preview, decoded and compared with what was planted, and the curves."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support import ROOT, bundle, head, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.errors import MissingExtraError, OutputError
from anofpdm.runtime.report.curves import draw_curves, mean_curve
from anofpdm.runtime.report.preview import write_preview
from anofpdm.runtime.report.sheet import DARK, Sheet, drawing
from anofpdm.runtime.report.tiles import choose, tiles
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.grid import Grid

AFFINE = np.diag([7.5, 7.5, 5.0, 1.0])


def boxed():
    """A box of a head, RAS+, brighter towards the patient's right; it leaves air around it."""
    volume = np.zeros((24, 28, 10), np.float32)
    volume[4:20, 5:23] = 100 + 3 * np.arange(16)[:, None, None]
    return volume


def planted():
    """A lesion in its right front: both coordinates are large in RAS+."""
    mask = np.zeros((24, 28, 10), np.uint8)
    mask[14:18, 16:21, 4:6] = 1
    return mask


def flipped(array, flips):
    """A canonical array as it is stored along axes that are flipped, with its image's affine."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    affine = AFFINE @ np.diag([-1.0 if flip else 1.0 for flip in (*flips, False)])
    return array[steps], affine


def segmented(flips=(False, False, False), axes="RA", level=4):
    """One slice of the boxed head with the planted mask, whatever the toy network gives."""
    toy = bundle(grid=Grid(32, 7.5, axes=axes))
    volume, affine = flipped(boxed(), flips)
    segmentation = Segmenter(toy, NumpyBackend(toy_network)).segment(
        nib.Nifti1Image(volume, affine)
    )
    kept = tuple(result for result in segmentation.slices if result.key == level)
    assert len(kept) == 1
    return replace(segmentation, slices=kept, mask=flipped(planted(), flips)[0])


def decoded(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def red(picture):
    return (picture[..., 0] > 225) & (picture[..., 1:].max(axis=-1) < 80)


def extent(pixels):
    """Top, bottom, left, right of what is set: pixel edges."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("axes", ["RA", "LP"])
@pytest.mark.parametrize(
    "flips", [(False, False, False), (True, False, False), (True, True, False), (False, True, True)]
)
def test_the_patients_right_is_on_the_left_and_the_outline_on_the_lesion(tmp_path, flips, axes):
    write_preview(tmp_path / "preview.png", segmented(flips, axes), "case")
    picture = decoded(tmp_path / "preview.png")
    black = (picture == 0).all(axis=-1)
    top, bottom, left, right = extent(black)
    tile = picture[top:bottom, left:right]  # the image: only its air is black
    grey = (tile[..., 0] > 60) & (np.ptp(tile, axis=-1) < 6)
    # What is outlined may be brighter than white: the head is where there is any, or the outline.
    top, bottom, left, right = extent(grey)
    marks = extent(red(tile))
    shares = [
        (marks[0] - top) / (bottom - top),
        (marks[1] - top) / (bottom - top),
        (marks[2] - left) / (right - left),
        (marks[3] - left) / (right - left),
    ]
    # The head: 5..22 to the front, 4..19 to the right; the lesion: 16..20 and 14..17.
    assert shares == pytest.approx([2 / 18, 7 / 18, 2 / 16, 6 / 16], abs=0.07)
    middle = (left + right) // 2
    lower = slice((top + bottom) // 2, bottom - 4)
    darker, brighter = tile[lower, middle + 4 : right - 4], tile[lower, left + 4 : middle - 4]
    assert brighter.mean() > darker.mean() + 15


def test_masks_are_drawn_where_the_volume_has_them_and_nowhere_else(tmp_path):
    """Not on healthy slices, unless these were segmented as well."""
    toy = recalibrated(bundle(), Cos_w=-1.0)
    segmenter = Segmenter(toy, NumpyBackend(toy_network))
    for every_slice in (False, True):
        segmentation = segmenter.segment(head(), affine=AFFINE, every_slice=every_slice)
        assert not segmentation.unhealthy_slices
        assert segmentation.mask.any() == every_slice
        write_preview(tmp_path / "preview.png", segmentation, "case")
        assert red(decoded(tmp_path / "preview.png")).any() == every_slice
        for tile in tiles(segmentation, 99):
            assert tile.mask.any() == segmentation.mask[..., tile.level].any()


def test_unhealthy_slices_are_preferred_and_evenly_chosen():
    decisions = [20 <= i < 30 for i in range(60)]
    assert choose(decisions, 60) == choose(decisions, 99) == list(range(60))
    some = choose(decisions, 15)
    assert len(some) == 15
    assert set(range(20, 30)) <= set(some)
    well = [i for i in some if not decisions[i]]
    assert well == [5, 15, 35, 45, 55]
    assert choose(decisions, 5) == [21, 23, 25, 27, 29]
    assert choose([False, True, False], 1) == [1]
    with pytest.raises(ValueError, match="at least one"):
        choose(decisions, 0)


def test_curves_mark_t_e_at_the_peak_of_each_modality():
    segmentation = Segmenter(bundle(channels=2), NumpyBackend(toy_network)).segment(
        np.stack([head(), head(lesion=False)], axis=-1), affine=AFFINE
    )
    with drawing():
        sheet = Sheet(9, 4, DARK)
        draw_curves(sheet, 0, segmentation.slices, ["flair", "t2"])
        both = sheet.figure.axes
    assert [axes.get_title(loc="left") for axes in both] == ["M_t, flair", "M_t, t2"]
    for c, axes in enumerate(both):
        points = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"]
        drawn = sorted(map(tuple, np.concatenate(points)))
        want = [
            (int(r.timesteps[r.M[:, c].argmax()]), r.M[:, c].max()) for r in segmentation.slices
        ]
        assert drawn == sorted(want)


def test_the_same_segmentation_gives_the_same_bytes_and_nothing_else_is_written(tmp_path):
    """In a process of its own, with a home, settings of matplotlib and temporary files to watch."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests/runtime')!r}]\n"
        "from anofpdm.runtime.report import preview, page\n"
        "assert 'matplotlib' not in sys.modules\n"
        "before = dict(os.environ)\n"
        "from support import bundle, toy_network, head\n"
        "import numpy as np\n"
        "from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend\n"
        "from anofpdm.runtime.segmenter import Segmenter\n"
        "segmenter = Segmenter(bundle(), NumpyBackend(toy_network))\n"
        "segmentation = segmenter.segment(head(), affine=np.diag([7.5, 7.5, 5.0, 1.0]))\n"
        "preview.write_preview(Path(sys.argv[1], 'a.png'), segmentation, 'case')\n"
        "preview.write_preview(Path(sys.argv[1], 'b.png'), segmentation, 'case')\n"
        "page.write_report(Path(sys.argv[1], 'c.html'), segmentation, 'case')\n"
        "assert dict(os.environ) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    watched = [tmp_path / name for name in ("home", "temporary", "work")]
    for folder in (*watched, tmp_path / "out"):
        folder.mkdir()
    home, temporary, work = watched
    (work / "matplotlibrc").write_text("font.family: serif\nimage.origin: lower\n")
    kept = {k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR" and k[:4] != "XDG_"}
    places = {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out"],
        env={**kept, **places, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=work, check=True,
    )  # fmt: skip
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert [str(path) for path in written] == [
        "out/a.png", "out/b.png", "out/c.html", "work/matplotlibrc",
    ]  # fmt: skip
    assert not list(home.iterdir())
    assert not list(temporary.iterdir())
    a, b = (tmp_path / f"out/{name}.png" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(head(), affine=AFFINE)
    write_preview(b, segmentation, "case")
    assert a.read_bytes() == b.read_bytes()
    with Image.open(a) as picture:
        assert set(picture.info) <= {"dpi"}
    write_preview(b, replace(segmentation, slices=segmentation.slices[1:]), "case")
    assert a.read_bytes() != b.read_bytes()


def test_titles_of_any_kind(tmp_path):
    segmentation = segmented()
    for title in ("$x_$", "two\nlines", "\u60a3\u8005", "\udcff.nii", "long " * 99):
        write_preview(tmp_path / "preview.png", segmentation, title)


def test_pictures_that_cannot_be_made_leave_nothing(tmp_path, monkeypatch):
    segmentation = segmented()
    with pytest.raises(OutputError, match="does not exist"):
        write_preview(tmp_path / "no" / "preview.png", segmentation, "case")
    monkeypatch.setitem(sys.modules, "matplotlib.font_manager", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'anofpdm[report]'")):
        write_preview(tmp_path / "preview.png", segmentation, "case")
    assert not list(tmp_path.iterdir())


def test_the_mean_curve_is_of_the_slices_that_have_not_stopped():
    """As far as half of them went."""
    curves = [[1.0], [2.0, 4.0], [3.0, 6.0, 9.0], [6.0, 8.0, 3.0]]
    slices = [
        SimpleNamespace(M=np.array(M)[:, None], timesteps=10 * np.arange(1, len(M) + 1))
        for M in curves
    ]
    t, mean = mean_curve(slices, 0)
    assert t.tolist() == [10, 20, 30]
    assert mean.tolist() == [3, 6, 6]
    t, mean = mean_curve([*slices, slices[0]], 0)
    assert t.tolist() == [10, 20]
