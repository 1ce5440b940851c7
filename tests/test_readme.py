"""What the README and the pages of docs/ show is what happens."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from support import ROOT

from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.infer import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "examples/README.md",
             *(f"docs/{name}" for name in PAGES)]  # fmt: skip


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


EXAMPLES = [*blocks(README, "python"), *blocks(PAGES["usage.md"], "python")]


def test_every_option_is_in_the_page_and_in_the_help_once():
    """In the same groups, and not more than a reader can take in."""
    parameters = main.get_params(click.Context(main))
    options = {
        "help" if "--help" in p.opts else p.name: {*p.opts, *p.secondary_opts}
        for p in parameters
        if isinstance(p, click.Option)
    }
    assert len(options) <= 26
    assert sorted(itertools.chain(*main.groups.values())) == sorted(options)
    text = CliRunner().invoke(main, ["--help"], prog_name="anofpdm-infer").output
    for heading, names in main.groups.items():
        table = PAGES["usage.md"].split(f"**{heading}**")[1].split("\n**")[0].split("\n#")[0]
        firsts = (line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `"))
        written = set(re.findall(r"`(--?[a-z0-9-]+)`", " ".join(firsts)))
        known = set().union(*(options[name] for name in names))
        assert written == known
        assert all(flag in text.split(f"{heading}:")[1].split("\n\n")[0] for flag in known)


def test_the_fields_of_options_are_those_of_the_page():
    table = PAGES["usage.md"].split("### Options")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert rows == [field.name for field in dataclasses.fields(Options)]


def test_the_first_page_is_short():
    assert len(README.split()) <= 1200


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_python_examples_run(number):
    assert len(EXAMPLES) == 4
    code = EXAMPLES[number]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.slow
def test_the_first_command_ends_with_the_line_that_is_shown(tmp_path):
    """And gives no warning."""
    command = blocks(README, "bash")[0]
    arguments = command.split("anofpdm-infer ")[1].split()
    arguments[0] = str(ROOT / arguments[0])
    arguments[2] = str(tmp_path / "mask.nii.gz")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    expected = re.sub(r", \d+ s:", ", N s:", blocks(README, "text")[0])
    printed = re.sub(r", \d+ s:", ", N s:", done.output).replace(f"{tmp_path}/", "")
    device = re.match(r"device: .*\n", printed)  # where there is a GPU
    assert printed.removeprefix(device[0] if device else "") == expected


def test_the_model_card_and_the_results_give_the_same_figures():
    card = open_bundle(DEFAULT).manifest.model_card
    assert "research, not for diagnosis" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and "0." in line]
    assert len(rows) == 12  # seven of figures, five presets
    for row in rows:
        assert row in PAGES["results.md"], row


def test_the_table_of_presets_on_the_first_page_is_that_of_the_results():
    """Dice, AUPRC and accuracy as benchmarks/presets.py wrote them, speed as side_by_side.py."""
    results = ROOT / "benchmarks" / "results"
    rows = {}
    for name in ("default-model-presets.json", "default-model-presets-exact.json"):
        content = json.loads((results / name).read_text())
        rows |= {row["preset"]: row for row in content["rows"]}
    table = re.findall(r"^\| `([\w-]+)`[^|]*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", README, re.M)
    assert {name for name, *_ in table} == {"fast", "fastest", "fast-bf16", "fastest-bf16", "ddpm",
                                            "exact"}  # fmt: skip
    for name, *numbers in table:
        row = rows[name]
        expected = [f"{row[key]:.3f}" for key in ("dice", "auprc", "accuracy")]
        assert numbers == expected, name


def test_the_default_bundle_is_small_and_calibrated():
    sizes = {path.name: path.stat().st_size for path in DEFAULT.iterdir() if path.is_file()}
    assert {NETWORK, NETWORK_FP16} < set(sizes)
    assert sum(sizes.values()) <= 16 * 10**6
    bundle = open_bundle(DEFAULT)
    assert bundle.manifest.modalities == ("flair",)
    assert bundle.calibrations[bundle.default].slices["split"] == "val"


def test_the_format_describes_every_key_of_the_default_bundle():
    page = PAGES["bundle-format.md"]

    def keys(value):
        if isinstance(value, dict):
            for key, below in value.items():
                yield key
                yield from keys(below)
        elif isinstance(value, list):
            for below in value:
                yield from keys(below)

    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    calibration = json.loads((DEFAULT / "calibration.json").read_text())
    del manifest["provenance"]["data"]  # what a cohort's owner wrote
    presets = list(calibration["presets"].values())
    for key in {*keys(manifest), *(key for preset in presets for key in keys(preset))}:
        assert f"`{key}`" in page or f"{key}" in page, key


def test_every_row_of_the_feature_table_names_tests_that_are_there():
    rows = [line for line in PAGES["usage.md"].splitlines() if re.match(r"\|.*`tests/", line)]
    assert len(rows) > 12
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+(?:\.py)?)/?`", row)
        assert named, row
        for name in named:
            assert (ROOT / name).exists(), row


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
