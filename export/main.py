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
@click.option("--pixel-mm", type=click.FloatRange(min=0, min_open=True), help="Their spacing.  "
              "[default: 240 / image size, as for BraTS]")  # fmt: skip
@click.option("--axes", type=click.Choice(["LP", "RA"]), help="Where their rows and columns lead: "
              "left and back, or right and front.  [default: LP, as BraTS]")  # fmt: skip
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
    pixel_mm: float | None,
    axes: str | None,
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
    from .source import Asked, read_source

    asked = Asked(_names(modalities, "--modalities"), heads, image_size, pixel_mm, axes)
    checkpoint = read_source(ckpt, asked)
    path = output or ckpt.with_suffix(".anofpdm")
    chosen = _names(scored, "--scored") or checkpoint.modalities
    if not set(chosen) <= set(checkpoint.modalities):
        known = ", ".join(checkpoint.modalities)
        raise AnofpdmError(f"--scored {scored}: the modalities are {known}")
    parity = write_bundle(
        checkpoint,
        path,
        name=name or path.stem,
        precision=precision,
        store_fp16=weights == "fp16" and precision == "fp32",
        scored=chosen,
        model_card=model_card.read_text(encoding="utf-8") if model_card else "",
    )
    if checkpoint.training() is None:
        grid = checkpoint.grid
        click.echo(
            f"note: slices are taken to be {grid.size} x {grid.size} pixels of {grid.pixel_mm:g} "
            f"mm, rows and columns leading to {grid.axes}, each scaled by itself: --pixel-mm and "
            "--axes say otherwise",
            err=True,
        )
    click.echo(
        f"bundle in {path}; against PyTorch: eps {parity.eps:.1e}, M_t {parity.M_t:.1e}, "
        f"H {parity.H:.1e}, t_e equal {parity.t_e:.0%}, mask Dice {parity.dice:.4f}"
    )


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise AnofpdmError(f"{option} {text}: give different names, with commas between them")
    return names
