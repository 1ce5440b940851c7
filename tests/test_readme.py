"""What the README shows is what happens."""

import re
import subprocess
import sys

from click.testing import CliRunner
from support import ROOT

from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.cli.infer import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_python_examples_run():
    assert len(blocks("python")) == 3
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_the_first_command_ends_with_the_line_that_is_shown(tmp_path):
    command = blocks("bash")[0]
    arguments = command.split("anofpdm-infer ")[1].split()
    arguments[0] = str(ROOT / arguments[0])
    arguments[2] = str(tmp_path / "mask.nii.gz")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    shown = re.sub(r", \d+ s:", ", N s:", blocks("text")[0])
    said = re.sub(r", \d+ s:", ", N s:", done.output).replace(f"{tmp_path}/", "")
    device, said = said.split("\n", 1)
    assert said == shown
    assert device.startswith("device: ")


def test_the_model_card_and_the_readme_give_the_same_figures():
    card = open_bundle(DEFAULT).manifest.model_card
    assert "research, not for diagnosis" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and "0." in line]
    assert len(rows) == 12  # seven of figures, five presets
    for row in rows:
        assert row in README, row


def test_the_default_bundle_is_small_and_calibrated():
    sizes = {path.name: path.stat().st_size for path in DEFAULT.iterdir() if path.is_file()}
    assert {NETWORK, NETWORK_FP16} < set(sizes)
    assert sum(sizes.values()) <= 16 * 10**6
    bundle = open_bundle(DEFAULT)
    assert bundle.manifest.modalities == ("flair",)
    assert bundle.calibrations[bundle.default].slices["split"] == "val"


def test_every_row_of_the_feature_table_names_tests_that_are_there():
    table = README.split("| | what | test |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 12
    for row in rows:
        named = re.findall(r"`(test_\w+\.py|fuzz/)`", row.rsplit("|", 2)[1])
        assert named, row
        for name in named:
            assert any(ROOT.glob(f"tests/**/{name}")), row
