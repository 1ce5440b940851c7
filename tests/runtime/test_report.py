"""The preview, decoded and compared with what was planted; the page, parsed as a browser would."""

import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support import ROOT, bundle, head, recalibrated, toy_network

from anofpdm.runtime.backend import HostBackend
from anofpdm.runtime.calibration import HealthyLeave
from anofpdm.runtime.errors import MissingExtraError, OutputError
from anofpdm.runtime.grid import Grid
from anofpdm.runtime.report.curves import draw_curves, mean_curve
from anofpdm.runtime.report.markup import tag
from anofpdm.runtime.report.page import write_report
from anofpdm.runtime.report.preview import write_preview
from anofpdm.runtime.report.sheet import DARK, Sheet, drawing
from anofpdm.runtime.report.stats import stats
from anofpdm.runtime.report.tables import method
from anofpdm.runtime.report.tiles import choose, tiles
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.setup import Setup

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


def turned(array, flips):
    """A canonical array as it is stored along axes that are flipped, with its image's affine."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    affine = AFFINE @ np.diag([-1.0 if flip else 1.0 for flip in (*flips, False)])
    return array[steps], affine


def segmented(flips=(False, False, False), axes="RA", level=4):
    """One slice of the boxed head with the planted mask, whatever the toy network says."""
    toy = bundle(grid=Grid(32, 7.5, axes=axes))
    volume, affine = turned(boxed(), flips)
    found = Segmenter(toy, HostBackend(toy_network)).segment(nib.Nifti1Image(volume, affine))
    (one,) = [result for result in found.slices if result.key == level]
    return replace(found, slices=(one,), mask=turned(planted(), flips)[0])


def decoded(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def red(picture):
    return (picture[..., 0] > 225) & (picture[..., 1:].max(axis=-1) < 80)


def extent(shown):
    """Top, bottom, left, right of what is shown: pixel edges."""
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("axes", ["RA", "LP"])
@pytest.mark.parametrize(
    "flips", [(False, False, False), (True, False, False), (True, True, False), (False, True, True)]
)
def test_the_patients_right_is_on_the_left_and_the_outline_on_the_lesion(tmp_path, flips, axes):
    write_preview(tmp_path / "preview.png", segmented(flips, axes))
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


def test_masks_are_shown_where_the_volume_has_them_and_nowhere_else(tmp_path):
    """Not on slices that were found healthy, unless these were segmented as well."""
    toy = recalibrated(bundle(), Cos_w=-1.0)
    segmenter = Segmenter(toy, HostBackend(toy_network))
    for every_slice in (False, True):
        found = segmenter.segment(head(), affine=AFFINE, every_slice=every_slice)
        assert not found.unhealthy_slices
        assert found.mask.any() == every_slice
        write_preview(tmp_path / "preview.png", found)
        assert red(decoded(tmp_path / "preview.png")).any() == every_slice
        for tile in tiles(found, 99):
            assert tile.mask.any() == found.mask[..., tile.level].any()


def test_unhealthy_slices_are_preferred_and_evenly_chosen():
    verdicts = [20 <= i < 30 for i in range(60)]
    assert choose(verdicts, 60) == choose(verdicts, 99) == list(range(60))
    some = choose(verdicts, 15)
    assert len(some) == 15
    assert set(range(20, 30)) <= set(some)
    well = [i for i in some if not verdicts[i]]
    assert well == [5, 15, 35, 45, 55]
    assert choose(verdicts, 5) == [21, 23, 25, 27, 29]
    assert choose([False, True, False], 1) == [1]
    with pytest.raises(ValueError, match="at least one"):
        choose(verdicts, 0)


def test_curves_mark_t_e_at_the_peak_of_each_modality():
    found = Segmenter(bundle(channels=2), HostBackend(toy_network)).segment(
        np.stack([head(), head(lesion=False)], axis=-1), affine=AFFINE
    )
    with drawing():
        sheet = Sheet(9, 4, DARK)
        draw_curves(sheet, 0, found.slices, ["flair", "t2"])
        both = sheet.figure.axes
    assert [axes.get_title(loc="left") for axes in both] == ["M_t, flair", "M_t, t2"]
    for c, axes in enumerate(both):
        points = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"]
        drawn = sorted(map(tuple, np.concatenate(points)))
        want = [(int(r.timesteps[r.M[:, c].argmax()]), r.M[:, c].max()) for r in found.slices]
        assert drawn == sorted(want)


def test_curves_mark_no_t_e_where_slices_left_early():
    found = Segmenter(bundle(), HostBackend(toy_network)).segment(head(), affine=AFFINE)
    gone = [replace(one, left=i % 2 == 0) for i, one in enumerate(found.slices)]
    for slices in (gone, [replace(one, left=True) for one in gone]):
        with drawing():
            sheet = Sheet(9, 4, DARK)
            draw_curves(sheet, 0, slices)
            (axes,) = sheet.figure.axes
        points = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"]
        assert sum(map(len, points)) == sum(not one.left for one in slices)


def test_the_same_segmentation_gives_the_same_bytes_and_nothing_else_is_written(tmp_path):
    """In a process of its own, with a home, settings of matplotlib and temporary files to watch."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests/runtime')!r}]\n"
        "from anofpdm.runtime.report import preview, page, stats\n"
        "assert 'matplotlib' not in sys.modules\n"
        "before = dict(os.environ)\n"
        "from support import bundle, toy_network, head\n"
        "import numpy as np\n"
        "from anofpdm.runtime.backend import HostBackend\n"
        "from anofpdm.runtime.segmenter import Segmenter\n"
        "segmenter = Segmenter(bundle(), HostBackend(toy_network))\n"
        "found = segmenter.segment(head(), affine=np.diag([7.5, 7.5, 5.0, 1.0]))\n"
        "preview.write_preview(Path(sys.argv[1], 'a.png'), found)\n"
        "preview.write_preview(Path(sys.argv[1], 'b.png'), found)\n"
        "page.write_report(Path(sys.argv[1], 'c.html'), found, stats.stats(segmenter, found))\n"
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
    found = Segmenter(bundle(), HostBackend(toy_network)).segment(head(), affine=AFFINE)
    write_preview(b, found)
    assert a.read_bytes() == b.read_bytes()
    with Image.open(a) as picture:
        assert set(picture.info) <= {"dpi"}
    write_preview(b, replace(found, slices=found.slices[1:]))
    assert a.read_bytes() != b.read_bytes()


def test_titles_of_any_kind(tmp_path):
    found = segmented()
    for title in ("$x_$", "two\nlines", "\u60a3\u8005", "\udcff.nii", "long " * 99):
        write_preview(tmp_path / "preview.png", found, title)


def test_pictures_that_cannot_be_made_leave_nothing(tmp_path, monkeypatch):
    found = segmented()
    with pytest.raises(OutputError, match="does not exist"):
        write_preview(tmp_path / "no" / "preview.png", found)
    monkeypatch.setitem(sys.modules, "matplotlib.font_manager", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'anofpdm[report]'")):
        write_preview(tmp_path / "preview.png", found)
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """What a page consists of: ``tags`` with their attributes in order, ``text``, tables' rows."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.rows, self._open = [], "", [], []
        self.feed(source)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of a hostile volume: source, parsed page, segmentation, statistics, title."""
    folder = tmp_path_factory.mktemp("page")
    segmenter = Segmenter(bundle(name="<b>toy</b>"), HostBackend(toy_network))
    name = "<img src=x onerror=alert(1)>.nii"
    nib.save(nib.Nifti1Image(head(), AFFINE), folder / name)
    found = segmenter.segment(nib.load(folder / name), every_slice=True)
    found = replace(found, notes=('look & see: <script>alert("note")</script>',))
    content = stats(segmenter, found, [folder / name], every_slice=True)
    title = "</title><script>alert('&amp;')</script>"
    write_report(folder / "page.html", found, content, title)
    source = (folder / "page.html").read_text(encoding="utf-8")
    return source, Page(source), found, content, title


def test_nothing_in_the_page_runs_or_is_fetched(written):
    source, page, *_ = written
    allowed = {
        "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "h2",
        "p", "strong", "small", "dl", "dt", "dd", "div", "ul", "li", "figure", "figcaption", "img",
        "picture", "source", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "i",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("href", "action", "background", "poster", "data")
            assert "url(" not in value
            if name in ("src", "srcset"):
                assert value.startswith("data:image/png;base64,")
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.tags[3][1] == {"http-equiv": "Content-Security-Policy", "content": policy}


def test_pictures_of_the_page_decode(written):
    _, page, *_ = written
    pictures = [one["src"] for one in page.all("img")] + [
        one["srcset"] for one in page.all("source")
    ]
    assert len(pictures) == 3
    for address in pictures:
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            assert min(picture.size) > 300
    assert all(len(one["alt"]) > 40 for one in page.all("img"))


def test_the_page_says_what_was_found_with_everything_escaped(written):
    _, page, found, content, title = written
    text = page.text
    assert text.lstrip().startswith(f"{title} - anofpdm{title}")
    for line in ("For research, not for diagnosis.", found.notes[0], "<b>toy</b>",
                 "<img src=x onerror=alert(1)>.nii", content["mask"]["sha256"],
                 f"Marked volume{found.volume_ml:.1f} ml"):  # fmt: skip
        assert line in text, line
    assert page.all("html") == [{"lang": "en"}]
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))
    heads = [i for i, row in enumerate(page.rows) if row[0] in ("Lesion", "Slice", "What")]
    lesions, slices, provenance = (
        page.rows[a + 1 : b] for a, b in zip(heads, [*heads[1:], None], strict=True)
    )
    assert len(lesions) == len(content["lesions"]) > 0
    assert [float(row[1]) for row in lesions] == pytest.approx(
        [one["volume_ml"] for one in content["lesions"]], abs=0.006
    )
    assert [int(row[0]) for row in slices] == [result.key for result in found.slices]
    assert [row[2] == "unhealthy" for row in slices] == [r.unhealthy for r in found.slices]
    said = dict(provenance)
    assert said["seed"] == "0"
    assert said["every_slice"] == "true"
    assert said["files_sha256.unet.onnx"] == "0" * 64


def test_attributes_are_escaped():
    value = "a \"b\" <c> & 'd'"
    assert Page(tag("p", "text", aria_label=value)).tags == [("p", {"aria-label": value})]


def test_a_page_of_an_empty_mask(tmp_path):
    segmenter = Segmenter(recalibrated(bundle(), Cos_w=-1.0), HostBackend(toy_network))
    found = segmenter.segment(head(), affine=AFFINE)
    write_report(tmp_path / "page.html", found, stats(segmenter, found))
    page = Page((tmp_path / "page.html").read_text())
    assert "Nothing is marked." in page.text
    assert "Notes and warnings" not in page.text
    assert page.text.lstrip().startswith("volume - anofpdmvolume")


def test_the_mean_curve_is_of_the_slices_that_are_still_there():
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


def test_slices_that_left_early_are_said_to(tmp_path):
    toy = bundle(process=("ddim", 301, 60, "even"))
    bounds = ((0.0,), (1.0,), *4 * ((0.0,),))  # all leave after two steps
    toy = recalibrated(toy, healthy_leave=HealthyLeave(bounds, 1.0, 1.0, 2.0, 6))
    segmenter = Segmenter(toy, HostBackend(toy_network))
    found = segmenter.segment(head(), affine=AFFINE)
    write_report(tmp_path / "report.html", found, stats(segmenter, found))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<td>left early</td>") == len(found.slices)
    assert "slices leave early once they are sure to be healthy" in page
    assert all(tile.left and not tile.unhealthy for tile in tiles(found, 4))
    usual = Segmenter(toy, HostBackend(toy_network), setup=Setup(healthy_leave=False))
    found = usual.segment(head(), affine=AFFINE)
    write_report(tmp_path / "report.html", found, stats(usual, found))
    assert "left early" not in (tmp_path / "report.html").read_text()


def test_the_method_is_told_as_it_was_used():
    def told(setup=None, **changes):
        toy = recalibrated(bundle(), **changes)
        segmenter = Segmenter(toy, HostBackend(toy_network), setup=setup or Setup())
        found = segmenter.segment(head(), affine=AFFINE)
        return method(stats(segmenter, found, []))

    plain = told()
    assert "reaches a quantile that M_t picks (Algorithm 1)" in plain
    assert "averages over slices" not in plain
    assert "mirrored" not in plain
    ours = told(threshold="half-way", neighbours_mm=10.0, mirrored=True)
    assert "reaches half-way between a quantile that M_t picks (Algorithm 1) and Otsu's" in ours
    assert "Maps and verdicts are averages over slices nearer than 10 mm." in ours
    assert "Every second slice is shown to the network mirrored" in ours
    fixed = told(Setup(Q=0.5), threshold="half-way")
    assert "reaches the fixed threshold 0.5" in fixed
    assert "Otsu" not in fixed
