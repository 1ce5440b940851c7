"""The reference U-Net (103 M parameters, 4 modalities) beside PyTorch: ``python
benchmarks/reference_speed.py``

With random weights, on which speed does not depend. What is measured is one evaluation, one slice
at a time, in turn; what a slice takes is that times the evaluations of each process.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from counterpart import evaluations_a_slice
from cpu import in_turn
from machine import machine, table
from networks import FULL, parameters, randomised
from side_by_side import spread

from anofpdm.export.both_labels import BothLabels
from anofpdm.export.onnx_file import export_onnx
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cpu.openvino import Bf16Denoiser
from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.util.files import write_json
from anofpdm.train.unet import HEALTHY, NULL

HEAD = ["reference U-Net", "s for both labels [quartiles]", "times as fast [quartiles]",
        "s a slice (computed): reference implementation", "exact", "fast", "fastest"]  # fmt: skip


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--json", "json_path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "reference-speed.json")  # fmt: skip
@reports_errors
def main(rounds: int, threads: int | None, json_path: Path) -> None:
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    unet = randomised(FULL)
    x_t = np.random.default_rng(0).standard_normal((1, FULL.in_channels, 128, 128), np.float32)
    t = np.array([100])

    @torch.no_grad()
    def eager() -> None:
        for label in (HEALTHY, NULL):
            unet(torch.from_numpy(x_t), torch.from_numpy(t - 1), torch.tensor([label]))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.onnx"
        count = parameters(unet)
        # Another one of the same weights: exporting changes it.
        export_onnx(BothLabels(randomised(FULL), "fp32"), path)
        fp32, bf16 = OnnxDenoiser(path, threads), Bf16Denoiser(path, threads)
        work = [eager, lambda: fp32(x_t, t), lambda: bf16(x_t, t)]
        seconds = in_turn(work, rounds)
    names = ("PyTorch, one label after the other", "ONNX Runtime, FP32", "OpenVINO, bfloat16")
    rows = [{"by": name, "seconds": one} for name, one in zip(names, seconds, strict=True)]
    about = {"machine": machine("torch", "openvino"), "threads": threads, "parameters_m": count}
    write_json(json_path, {**about, "rows": rows})
    click.echo(f"{threads} threads\n")
    click.echo(table(HEAD, [line(row, rows[0]) for row in rows]))


def line(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """A line of the table; only PyTorch's has the reference implementation's cost."""
    bundle, both = open_bundle(DEFAULT), float(np.median(row["seconds"]))
    ratios = [b / a for a, b in zip(row["seconds"], first["seconds"], strict=True)]
    steps = [
        len(resolve(bundle, Options(preset=name)).process.timesteps)
        for name in ("exact", "fast", "fastest")
    ]
    theirs = f"{evaluations_a_slice(600) * both / 2:.0f}" if row is first else ""
    ours = [f"{n * both:.0f}" for n in steps]
    return [row["by"], spread(row["seconds"]), spread(ratios), theirs, *ours]


if __name__ == "__main__":
    main()
