"""Does the export compute what the reference implementation computes?

``python benchmarks/reference_parity.py --fixture FOLDER``; FOLDER holds a small ``unet.pt`` and
what the authors' implementation computes with it (``unet_eps.npz``). The full-size network has
random weights: it shows that the export carries its size.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from machine import machine, table
from networks import FULL, parameters, randomised
from onnx_cost import flop

from anofpdm.export.bundle_writer import write_bundle
from anofpdm.export.checkpoints import CheckpointOptions, read_source
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import NETWORK
from anofpdm.runtime.util.files import write_json

HEAD = ["network", "M parameters", "GFLOP a label", "from the recorded eps", "eps", "M_t", "H",
        "t_e equal", "mask Dice"]  # fmt: skip


@click.command()
@click.option("--fixture", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "reference-parity.json")  # fmt: skip
def main(fixture: Path, path: Path) -> None:
    """Export both networks as anofpdm-export does, and compare."""
    about, described = machine("torch", "onnx"), json.loads((fixture / "unet.json").read_text())
    names = tuple(f"channel {i}" for i in range(described["in_channels"]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "small.anofpdm"
        given = (names, described["num_heads"], described["image_size"])
        results = [{"network": "fixture", **export(fixture / "unet.pt", out, *given)}]
        recorded = np.load(fixture / "unet_eps.npz")
        got = OnnxDenoiser(out / NETWORK)(recorded["x_t"], recorded["t"] + 1)
        results[0]["recorded"] = max(
            float(np.abs(eps - recorded[name][:, : eps.shape[1]]).max())
            for name, eps in zip(("eps_healthy", "eps_null"), got, strict=True)
        )
        weights = Path(folder) / "ema_0.9999_000000.pt"
        torch.save(randomised(FULL).state_dict(), weights)
        out = Path(folder) / "full.anofpdm"
        results.append(
            {"network": "full size, random weights",
             **export(weights, out, ("flair", "t1", "t1ce", "t2"))}
        )  # fmt: skip
    write_json(path, {"machine": about, "networks": results})
    click.echo(f"{about}\n\n{table(HEAD, [row(result) for result in results])}")


def export(
    weights: Path, out: Path, modalities: tuple[str, ...], heads: int = 4, image_size: int = 128
) -> dict[str, Any]:
    """Write a bundle; its cost and its parity with PyTorch."""
    checkpoint = read_source(weights, CheckpointOptions(modalities, heads, image_size))
    parity = write_bundle(checkpoint, out, name=out.stem, fp16=False)[NETWORK]
    return {
        "parameters_m": parameters(checkpoint.network()),
        "gflop": flop(onnx.load(out / NETWORK)) / 2e9,
        **asdict(parity),
    }


def row(result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    recorded = f"{result['recorded']:.1e}" if "recorded" in result else "none recorded"
    return [
        result["network"], f"{result['parameters_m']:.2f}", f"{result['gflop']:.2f}", recorded,
        f"{result['eps']:.1e}", f"{result['M_t']:.1e}", f"{result['H']:.1e}",
        f"{result['t_e']:.0%}", f"{result['dice']:.4f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
