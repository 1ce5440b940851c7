from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

import anofpdm.export.cli as export_main
from anofpdm.export import bundle_writer
from anofpdm.export import checkpoints as source
from anofpdm.export.cli import main
from anofpdm.export.parity import Parity
from anofpdm.runtime.bundle.bundle import NETWORK, NETWORK_FP16
from anofpdm.runtime.errors import DeviceError

GOOD = Parity(eps=1.2e-5, M_t=2e-4, H=3e-3, t_e=1.0, dice=0.99871)
FIGURES = "eps 1.2e-05, M_t 2.0e-04, H 3.0e-03, t_e equal 100%, mask Dice 0.9987\n"


@pytest.fixture
def passed(monkeypatch):
    """The arguments of the export, which does not take place."""
    passed = {}

    def write_bundle(checkpoint, path, **options):
        passed.update(options)
        return dict.fromkeys((NETWORK, NETWORK_FP16)[: 1 + options["fp16"]], GOOD)

    checkpoint = SimpleNamespace(modalities=("flair",), training=lambda: {})
    monkeypatch.setattr(bundle_writer, "write_bundle", write_bundle)
    monkeypatch.setattr(source, "read_source", lambda path, options: checkpoint)
    monkeypatch.setattr(export_main, "build_if_possible", lambda path: f"engine in {path}")
    return passed


def test_both_networks_by_default(passed):
    done = CliRunner().invoke(main, ["--ckpt", "model.pt", "-o", "x"])
    assert done.output == (
        f"bundle in x; against PyTorch: {FIGURES}{NETWORK_FP16} against PyTorch: {FIGURES}"
        "engine in x\n"
    )
    assert done.exit_code == 0
    assert passed["fp16"]
    assert not passed["store_fp16"]


def test_without_a_gpu_the_bundle_is_written_and_an_engine_can_follow(passed, monkeypatch):
    def no_gpu(path):
        raise DeviceError("no NVIDIA driver: install one")

    monkeypatch.setattr(export_main, "build_if_possible", no_gpu)
    done = CliRunner().invoke(main, ["--ckpt", "model.pt", "-o", "my x"])
    assert done.exit_code == 0
    assert done.stderr == (
        "note: no TensorRT engine yet (no NVIDIA driver: install one); run anofpdm-export engine "
        "'my x' for one\n"
    )


def test_one_network(passed):
    done = CliRunner().invoke(
        main, ["--ckpt", "model.pt", "-o", "x", "--no-fp16", "--weights", "fp16"]
    )
    assert done.output == f"bundle in x; against PyTorch: {FIGURES}"
    assert not passed["fp16"]
    assert passed["store_fp16"]


def test_a_checkpoint_is_needed():
    done = CliRunner().invoke(main, ["-o", "x"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: Missing option '--ckpt'")


def test_subcommands_need_no_checkpoint(monkeypatch):
    monkeypatch.setattr(main, "commands", {})
    main.add_command(click.command("thing")(lambda: click.echo("done")))
    done = CliRunner().invoke(main, ["thing"])
    assert (done.exit_code, done.output) == (0, "done\n")
    done = CliRunner().invoke(main, ["--ckpt", "model.pt", "thing"])
    assert done.exit_code == 2
    assert "--ckpt does not go with thing" in done.stderr
