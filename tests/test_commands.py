"""Errors, help and version of all commands."""

from importlib import import_module

import pytest
from support import call

COMMANDS = {
    "anofpdm-infer": "anofpdm.runtime.cli.infer",
    "anofpdm-train": "anofpdm.train.cli",
    "anofpdm-export": "anofpdm.export.cli",
    "anofpdm-calibrate": "anofpdm.calibrate.cli",
    "anofpdm-evaluate": "anofpdm.calibrate.evaluate_cli",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_options_end_in_one_line(name):
    message = call(import_module(COMMANDS[name]).main, "--nothing-of-the-kind", code=2)
    assert message.startswith("error: No such option")
    assert message.endswith("(--help lists the options)\n")
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["anofpdm-train", "anofpdm-export", "anofpdm-evaluate"])
def test_what_is_missing_is_named(name):
    message = call(import_module(COMMANDS[name]).main, code=2)
    assert message.startswith("error: Missing ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version_end_well(name):
    main = import_module(COMMANDS[name]).main
    assert "Example" in call(main, "--help")
    assert "0.1.0" in call(main, "--version")
