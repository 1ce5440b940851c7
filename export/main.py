"""``anofpdm-export``: a checkpoint in, a bundle out."""

from __future__ import annotations

from pathlib import Path

import click

from anofpdm.runtime.command import reports_errors
from anofpdm.runtime.denoiser import load_onnxruntime
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.extras import require


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path), help="The checkpoint.")
@click.option("--modalities", help="Channels in order, with commas: of a reference checkpoint.")
@click.option("--heads", type=click.IntRange(min=1), help="Of its attention.  [default: 4]")
@click.option("--image-size", type=click.IntRange(min=8), help="Of its slices.  [default: 128]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: CKPT.anofpdm]")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32",
              show_default=True, help="What the network computes in.")  # fmt: skip
@click.option("--weights", type=click.Choice(["fp32", "fp16"]), default="fp32",
              show_default=True, help="What an fp32 network's weights are stored in.")  # fmt: skip
@click.option("--scored", help="Modalities that count for the map, with commas.  [default: all]")
@click.option("--name", help="What the model is called.  [default: the output's name]")
@click.option(
    "--model-card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Markdown file.",
)
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    ckpt: Path,
    modalities: str | None,
    heads: int | None,
    image_size: int | None,
    output: Path | None,
    precision: str,
    weights: str,
    scored: str | None,
    name: str | None,
    model_card: Path | None,
) -> None:
    """Export a checkpoint to ONNX, and verify it against PyTorch.

    It is one of anofpdm-train, or a state_dict of the reference implementation.

    Example: anofpdm-export --ckpt run/model.pt -o model.anofpdm

    Example: anofpdm-export --ckpt ema_0.9999_210000.pt --modalities flair,t1,t1ce,t2
    """
    for module in ("torch", "onnx", "onnxscript"):
        require(module, "export")
    load_onnxruntime()
    from .bundle_writer import write_bundle
    from .source import read_source

    names = None if modalities is None else tuple(name.strip() for name in modalities.split(","))
    checkpoint = read_source(ckpt, names, heads, image_size)
    path = output or ckpt.with_suffix(".anofpdm")
    chosen = tuple(scored.split(",")) if scored else checkpoint.modalities
    if not set(chosen) <= set(checkpoint.modalities):
        raise AnofpdmError(f"--scored {scored}: the modalities are {checkpoint.modalities}")
    parity = write_bundle(
        checkpoint,
        path,
        name=name or path.stem,
        precision=precision,
        store_fp16=weights == "fp16" and precision == "fp32",
        scored=chosen,
        model_card=model_card.read_text(encoding="utf-8") if model_card else "",
    )
    click.echo(
        f"bundle in {path}; against PyTorch: eps {parity.eps:.1e}, M_t {parity.M_t:.1e}, "
        f"H {parity.H:.1e}, t_e equal {parity.t_e:.0%}, mask Dice {parity.dice:.4f}"
    )
