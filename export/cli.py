"""``anofpdm-export``: from a checkpoint to a bundle; ``engine``: a TensorRT engine for it."""

from pathlib import Path

import click

from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.backends.cuda.device import Gpu
from anofpdm.runtime.bundle.bundle import NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.engines import FLAVOURS, Engine, load_tensorrt, rebuild
from anofpdm.runtime.cli.arguments import OneLineGroup, reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import AnofpdmError, OptionsError
from anofpdm.runtime.util.optional import require

from .parity import Parity
from .tensorrt.build import SLOTS


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--gpu", "index", default=0, show_default=True, type=click.IntRange(min=0),
              help="Number of the GPU.")  # fmt: skip
@click.option("--flavour", type=click.Choice(list(FLAVOURS)), help="Kind of TensorRT.  "
              "[default: the first that is installed]")  # fmt: skip
@click.option("--slots", default=",".join(map(str, SLOTS)), show_default=True,
              help="Batch sizes, with commas; each has an optimization profile.")  # fmt: skip
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Limit of the scratch memory of "
              "a layer, in MiB.  [default: none]")  # fmt: skip
@reports_errors
def engine(
    path: Path, index: int, flavour: str | None, slots: str, workspace_mib: int | None
) -> None:
    """Build a TensorRT engine for a bundle, verify it, and write it into the bundle.

    The engine is for this kind of GPU and this version of TensorRT. PyTorch is not needed.

    Example: anofpdm-export engine model.anofpdm
    """
    bundle, slot_counts = open_bundle(path), _slot_counts(slots)
    with Gpu(index) as gpu:
        # Imported here: TensorRT crashes rather than fails where there is no driver.
        from .tensorrt.verify import build_on

        trt = load_tensorrt(flavour)
        line = ProgressLine("building")
        built = build_on(
            gpu,
            trt,
            bundle,
            slot_counts,
            workspace_mib=workspace_mib,
            progress=lambda phase, share: line(round(100 * share), 100),
        )
    click.echo(describe(built, path))


def build_if_possible(path: Path) -> str:
    """Build an engine for the bundle at ``path`` with the defaults of :func:`engine`.

    Returns
    -------
    its description

    Raises
    ------
    AnofpdmError
        If there is no GPU or no TensorRT, or the engine cannot be built.
    """
    bundle = open_bundle(path)
    with Gpu(0) as gpu:
        from .tensorrt.verify import build_on

        return describe(build_on(gpu, load_tensorrt(), bundle), path)


def describe(built: Engine, path: Path) -> str:
    """A line about an engine in the bundle at ``path``."""
    return (
        f"engine {built.file_name} in {path}; against the FP32 network on the CPU: "
        f"{Parity(**built.parity)}"
    )


def _slot_counts(text: str) -> tuple[int, ...]:
    try:
        slots = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        slots = ()
    if not slots or slots[0] < 1:
        raise OptionsError(f"--slots {text}: give whole numbers from 1, with commas between them")
    return slots


@click.group(
    cls=OneLineGroup, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]"
)
@click.option("--ckpt", type=click.Path(path_type=Path), help="Checkpoint.  [required]")
@click.option("--modalities", help="Names of the channels of a reference checkpoint, in order, "
              "with commas.")  # fmt: skip
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads of a reference "
              "checkpoint.  [default: 4]")  # fmt: skip
@click.option("--image-size", type=click.IntRange(min=8), help="Pixels a side of its slices.  "
              "[default: 128]")  # fmt: skip
@click.option("--pixel-mm", type=click.FloatRange(min=0, min_open=True), help="Spacing of the "
              "pixels.  [default: 240 / image size, as for BraTS]")  # fmt: skip
@click.option("--axes", type=click.Choice(["LP", "RA"]), help="Directions of rows and "
              "columns: left and posterior, or right and anterior.  "
              "[default: LP, as in BraTS]")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle.  "
              "[default: CKPT.anofpdm]")  # fmt: skip
@click.option("--weights", type=click.Choice(["fp32", "fp16"]), default="fp32",
              show_default=True, help="Precision of the stored weights; the network computes in "
              "fp32.")  # fmt: skip
@click.option("--fp16/--no-fp16", default=True, show_default=True, help="Network that computes "
              "in fp16, for TensorRT engines.")  # fmt: skip
@click.option("--scored", help="Modalities of the anomaly map, with commas.  [default: all]")
@click.option("--name", help="Name of the model.  [default: the output's name]")
@click.option(
    "--model-card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown file of the model card.",
)
@click.version_option(package_name="anofpdm")
@reports_errors
@click.pass_context
def main(
    context: click.Context,
    ckpt: Path | None,
    modalities: str | None,
    heads: int | None,
    image_size: int | None,
    pixel_mm: float | None,
    axes: str | None,
    output: Path | None,
    weights: str,
    fp16: bool,
    scored: str | None,
    name: str | None,
    model_card: Path | None,
) -> None:
    """Export a checkpoint to ONNX, and verify it against PyTorch.

    The checkpoint is one of anofpdm-train, or a state_dict of the reference implementation.

    Example: anofpdm-export --ckpt run/model.pt -o model.anofpdm

    Example: anofpdm-export --ckpt ema_0.9999_210000.pt --modalities flair,t1,t1ce,t2
    """
    if context.invoked_subcommand is not None:
        if ckpt is not None:
            raise click.UsageError(f"--ckpt does not go with {context.invoked_subcommand}", context)
        return
    if ckpt is None:
        missing = next(param for param in context.command.params if param.name == "ckpt")
        raise click.MissingParameter(ctx=context, param=missing)
    for module in ("torch", "onnx", "onnxscript"):
        require(module, "export")
    load_onnxruntime()
    from .bundle_writer import write_bundle
    from .checkpoints import CheckpointOptions, read_source

    names = _names(modalities, "--modalities")
    checkpoint = read_source(ckpt, CheckpointOptions(names, heads, image_size, pixel_mm, axes))
    path = output or ckpt.with_suffix(".anofpdm")
    chosen = _names(scored, "--scored") or checkpoint.modalities
    if not set(chosen) <= set(checkpoint.modalities):
        modalities = ", ".join(checkpoint.modalities)
        raise AnofpdmError(f"--scored {scored}: the modalities are {modalities}")
    parity = write_bundle(
        checkpoint,
        path,
        name=name or path.stem,
        fp16=fp16,
        store_fp16=weights == "fp16",
        scored=chosen,
        model_card=model_card.read_text(encoding="utf-8") if model_card else "",
    )
    if checkpoint.training() is None:
        grid = checkpoint.grid
        click.echo(
            f"note: assuming slices of {grid.size} x {grid.size} pixels of {grid.pixel_mm:g} mm, "
            f"rows and columns leading to {grid.axes}, each scaled by itself: --pixel-mm and "
            "--axes change this",
            err=True,
        )
    click.echo(f"bundle in {path}; against PyTorch: {parity[NETWORK]}")
    if NETWORK_FP16 not in parity:
        return
    click.echo(f"{NETWORK_FP16} against PyTorch: {parity[NETWORK_FP16]}")
    try:
        click.echo(build_if_possible(path))
    except AnofpdmError as error:
        click.echo(f"note: no TensorRT engine yet ({error}); {rebuild(path)} for one", err=True)


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise AnofpdmError(f"{option} {text}: give different names, with commas between them")
    return names


main.add_command(engine)
