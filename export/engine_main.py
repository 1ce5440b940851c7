"""``anofpdm-export engine``: a bundle's FP16 network becomes a TensorRT engine."""

from __future__ import annotations

from pathlib import Path

import click

from anofpdm.runtime.backends.cuda.device import Gpu
from anofpdm.runtime.bundle.bundle import open_bundle
from anofpdm.runtime.bundle.engines import FLAVOURS, Engine, load_tensorrt
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import SetupError

from .engine import SLOTS
from .parity import Parity


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--gpu", "index", default=0, show_default=True, type=click.IntRange(min=0),
              help="Its number.")  # fmt: skip
@click.option("--flavour", type=click.Choice(list(FLAVOURS)), help="[default: the first that is "
              "installed]")  # fmt: skip
@click.option("--slots", default=",".join(map(str, SLOTS)), show_default=True,
              help="Batch sizes, each with a profile of its own.")  # fmt: skip
@click.option("--workspace-mib", type=click.IntRange(min=1), help="The most scratch memory a layer "
              "may use.  [default: all there is]")  # fmt: skip
@reports_errors
def engine(
    bundle: Path, index: int, flavour: str | None, slots: str, workspace_mib: int | None
) -> None:
    """Build a TensorRT engine for a bundle, verify it, and put it there.

    It is for this kind of GPU and this version of TensorRT. PyTorch is not needed.

    Example: anofpdm-export engine model.anofpdm
    """
    opened, counts = open_bundle(bundle), _counts(slots)
    with Gpu(index) as gpu:
        # Imported here: TensorRT crashes rather than fails where there is no driver.
        from .build import build_on

        trt = load_tensorrt(flavour)
        shown = ProgressLine("building")
        made = build_on(
            gpu,
            trt,
            opened,
            counts,
            workspace_mib=workspace_mib,
            progress=lambda phase, share: shown(round(100 * share), 100),
        )
    click.echo(describe(made, bundle))


def build_if_possible(bundle: Path) -> str:
    """What :func:`engine` says, or why none was built and how it can be."""
    opened = open_bundle(bundle)
    with Gpu(0) as gpu:
        from .build import build_on

        return describe(build_on(gpu, load_tensorrt(), opened), bundle)


def describe(made: Engine, bundle: Path) -> str:
    """What was made, in a line."""
    return (
        f"engine {made.file_name} in {bundle}; against the FP32 network on the CPU: "
        f"{Parity(**made.parity)}"
    )


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise SetupError(f"--slots {text}: give whole numbers from 1, with commas between them")
    return counts
