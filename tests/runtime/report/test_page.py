"""The page: parsed as a browser would, and its text."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support import bundle, head, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.source import describe_inputs
from anofpdm.runtime.report.html import method, tag
from anofpdm.runtime.report.page import write_report
from anofpdm.runtime.report.stats import stats
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 7.5, 5.0, 1.0])


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
    segmenter = Segmenter(bundle(name="<b>toy</b>"), NumpyBackend(toy_network))
    name = "<img src=x onerror=alert(1)>.nii"
    nib.save(nib.Nifti1Image(head(), AFFINE), folder / name)
    segmentation = segmenter.segment(nib.load(folder / name), every_slice=True)
    segmentation = replace(
        segmentation,
        inputs=describe_inputs([folder / name], False),
        notes=('look & see: <script>alert("note")</script>',),
    )
    title = "</title><script>alert('&amp;')</script>"
    content = stats(segmentation, title)
    write_report(folder / "page.html", segmentation, title)
    source = (folder / "page.html").read_text(encoding="utf-8")
    return source, Page(source), segmentation, content, title


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


def test_the_page_has_the_results_with_everything_escaped(written):
    _, page, segmentation, content, title = written
    text = page.text
    assert text.lstrip().startswith(f"{title} - anofpdm{title}")
    for line in ("For research, not for diagnosis.", segmentation.notes[0], "<b>toy</b>",
                 "<img src=x onerror=alert(1)>.nii", content["mask"]["sha256"],
                 f"Marked volume{segmentation.volume_ml:.1f} ml"):  # fmt: skip
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
    assert [int(row[0]) for row in slices] == [result.key for result in segmentation.slices]
    assert [row[2] == "unhealthy" for row in slices] == [r.unhealthy for r in segmentation.slices]
    made_by = dict(provenance)
    assert made_by["seed"] == "0"
    assert made_by["every_slice"] == "true"
    assert made_by["files_sha256.unet.onnx"] == "0" * 64


def test_attributes_are_escaped():
    value = "a \"b\" <c> & 'd'"
    assert Page(tag("p", "text", aria_label=value)).tags == [("p", {"aria-label": value})]


def test_a_page_of_an_empty_mask(tmp_path):
    segmenter = Segmenter(recalibrated(bundle(), Cos_w=-1.0), NumpyBackend(toy_network))
    segmentation = segmenter.segment(head(), affine=AFFINE)
    write_report(tmp_path / "page.html", segmentation, "volume")
    page = Page((tmp_path / "page.html").read_text())
    assert "Nothing is marked." in page.text
    assert "Notes and warnings" not in page.text
    assert page.text.lstrip().startswith("volume - anofpdmvolume")


def test_the_method_is_described_as_it_was_used():
    def text(options=None, **changes):
        toy = recalibrated(bundle(), **changes)
        segmenter = Segmenter(toy, NumpyBackend(toy_network), options=options or Options())
        return method(stats(segmenter.segment(head(), affine=AFFINE), "volume"))

    plain = text()
    assert "reaches a quantile that M_t picks (Algorithm 1)" in plain
    assert "averaged over slices" not in plain
    assert "flipped" not in plain
    ours = text(threshold_rule="mean-with-otsu", neighbours_mm=10.0, flip_tta=True)
    assert "reaches the mean of a quantile that M_t picks (Algorithm 1) and Otsu's" in ours
    assert (
        "Maps, and the statistics of the image-level decision, are averaged over slices within "
        "10 mm." in ours
    )
    assert "Every second slice is flipped, left for right, before the network sees it." in ours
    assert "edges" not in plain
    assert (
        "by a median filter and fitted to the slice's edges by a guided filter (radius 9 mm), r"
        in text(guided_mm=9.0)
    )
    fixed = text(Options(Q=0.5), threshold_rule="mean-with-otsu")
    assert "reaches the fixed threshold 0.5" in fixed
    assert "Otsu" not in fixed
