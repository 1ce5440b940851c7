"""The page in a real browser: everything in it is shown, and nothing is refused."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from support import bundle, head, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.report.page import write_report
from anofpdm.runtime.segmenter import Segmenter

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=20000",
)  # fmt: skip
# No script may run in the page: another page looks into it, through a frame.
WATCHER = """<!DOCTYPE html><title>watcher</title><iframe src="page.html" width="1100" height="900">
</iframe><pre id="seen"></pre><script>
document.querySelector("iframe").onload = async event => {
  const page = event.target.contentDocument, seen = {decoded: []};
  seen.text = page.body.innerText;
  seen.title = page.title;
  seen.widths = [...page.images].map(image => image.complete && image.naturalWidth);
  seen.tall = page.querySelector("h1").getBoundingClientRect().height;
  for (const source of page.querySelectorAll("source")) {
    const image = new Image();
    image.src = source.srcset;
    seen.decoded.push(await image.decode().then(() => image.naturalWidth, () => 0));
  }
  seen.wider = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""

pytestmark = pytest.mark.slow


def run(arguments, folder):
    """What a browser prints, and the lines of its console."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser in PATH ({', '.join(names)})")
    profile = folder / "profile"
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def watch(folder):
    (folder / "watcher.html").write_text(WATCHER)
    # The browser's own clock runs ahead where nothing but decoding goes on, so that a slow machine
    # may be read too early.
    for _ in range(4):
        shown, console = run(["--dump-dom", (folder / "watcher.html").as_uri()], folder)
        seen = re.findall(r'<pre id="seen">(.+?)</pre>', shown, re.DOTALL)
        if seen:
            return json.loads(unescape(seen[0])), console
    raise AssertionError(f"the page was not shown: {shown[:500]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    segmentation = segmenter.segment(head(), affine=np.diag([7.5, 7.5, 5.0, 1.0]), every_slice=True)
    segmentation = replace(segmentation, notes=("a note of <b>some</b> kind",))
    write_report(folder / "page.html", segmentation, "Case <script>1</script>")
    return folder


def test_a_browser_shows_all_of_the_page(folder):
    seen, console = watch(folder)
    assert console == []
    assert seen["title"] == "Case <script>1</script> - anofpdm"
    lines = ["Case <script>1</script>", "For research, not for diagnosis.", "Slice by slice"]
    for line in [*lines, "a note of <b>some</b> kind", "Provenance", "unhealthy"]:
        assert line in seen["text"], line
    assert len(seen["widths"]) == 2
    assert min(seen["widths"]) > 1000
    assert len(seen["decoded"]) == 1
    assert min(seen["decoded"]) > 1000
    assert 0 < seen["tall"] < 80  # the style is applied, and the heading is in one line
    assert seen["wider"] <= 0


def test_the_watcher_notices_what_is_broken(folder, tmp_path):
    """Without which the test above would prove nothing."""
    page = (folder / "page.html").read_text()
    start = page.index("base64,", page.index("<main>")) + 30
    broken = f"{page[:start]}{page[start + 4000 :]}".replace(
        "</main>", '<img src="http://127.0.0.1:9/x.png" alt=""><script>1</script></main>'
    )
    (tmp_path / "page.html").write_text(broken)
    seen, console = watch(tmp_path)
    assert not all(seen["widths"])
    assert any("Content Security Policy" in line for line in console)


def test_a_browser_prints_the_page(folder):
    run([f"--print-to-pdf={folder / 'page.pdf'}", (folder / "page.html").as_uri()], folder)
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "page.pdf").stat().st_size > 50_000
