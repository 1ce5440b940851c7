"""How well the CPU is used: ``python benchmarks/cpu.py``

The network's share of the fastest convolution of ONNX Runtime and PyTorch (oneDNN), what the loop
in NumPy adds to the network, and how long a command takes before and after its work. One thread,
medians; the network and the convolutions in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import onnx
import torch
from machine import machine, table
from onnx import TensorProto, helper, numpy_helper
from onnx_cost import flop

from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import write_json

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "simulated_flair.nii.gz"
# Channels, pixels a side, batch of 3x3 convolutions that suit the libraries.
CONVOLUTIONS = [(128, 32, 8), (256, 32, 8), (512, 32, 2), (256, 16, 8)]
SLOTS = 4


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "cpu.json")  # fmt: skip
@reports_errors
def main(rounds: int, json_path: Path) -> None:
    bundle = open_bundle(DEFAULT)
    found = {**rates(bundle, rounds), **bookkeeping(bundle, rounds), **start_up(min(rounds, 7))}
    write_json(
        json_path,
        {"machine": machine("onnx", "openvino", "torch"), "threads": 1, "rounds": rounds, **found},
    )
    rows = [
        ["fastest 3x3 convolution, GFLOP/s", f"{found['convolution_gflops']:.0f}"],
        ["default network in FP32, GFLOP/s", f"{found['network_gflops']:.0f}"],
        ["its share of the fastest convolution", f"{found['share']:.0%}"],
        ["network, ms a slice and timestep: FP32, bfloat16",
         f"{found['fp32_ms']:.1f}, {found['bf16_ms']:.1f}"],
        ["NumPy, ms a slice and timestep", f"{found['numpy_ms']:.2f}"],
        ["of the network's time: FP32, bfloat16",
         f"{found['numpy_ms'] / found['fp32_ms']:.1%}, {found['numpy_ms'] / found['bf16_ms']:.1%}"],
        ["`anofpdm-infer` of one slice without its work, s: median [smallest, largest]",
         "{:.2f} [{:.2f}, {:.2f}]".format(*found["start_up_s"])],
    ]  # fmt: skip
    click.echo(table(["", ""], rows))


def rates(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """GFLOP/s of the network and of the fastest convolution, one thread, in turn."""
    model = onnx.load(bundle.network)
    x_t = phantom_slices(SLOTS, len(bundle.manifest.modalities), bundle.manifest.grid.size)
    feed = {"x_t": x_t, "t": np.full(SLOTS, 99)}
    work: list[tuple[float, Callable[[], object]]] = [
        (SLOTS * flop(model), _session(bundle.network.read_bytes(), feed))
    ]
    for channels, size, batch in CONVOLUTIONS:
        x = np.random.default_rng(0).standard_normal((batch, channels, size, size), np.float32)
        cost = 2 * batch * size**2 * 9 * channels**2
        work.append((cost, _session(convolution(channels, x.shape), {"x": x})))
        work.append((cost, eager_convolution(channels, x)))
    seconds = in_turn([one for _, one in work], rounds)
    network, *others = (
        cost / float(np.median(s)) / 1e9 for (cost, _), s in zip(work, seconds, strict=True)
    )
    return {
        "network_gflops": network,
        "convolution_gflops": max(others),
        "share": network / max(others),
    }


def bookkeeping(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Milliseconds a slice and timestep, one thread: the networks, and NumPy around one that costs
    nothing (with all that is done once a slice)."""
    x0 = phantom_slices(SLOTS, len(bundle.manifest.modalities), bundle.manifest.grid.size)
    t = np.full(SLOTS, 100)
    free = Segmenter(bundle, NumpyBackend(lambda x_t, t: (x_t, 0.9 * x_t), SLOTS))
    steps = len(free.setup.process.timesteps)
    both = [
        open_device("cpu", bundle, threads=1, precision=precision).denoiser
        for precision in ("fp32", "bf16")
    ]
    fp32, bf16, numpy = in_turn(
        [
            lambda: both[0](x0, t),
            lambda: both[1](x0, t),
            lambda: list(free.segment_slices(Slice(i, x) for i, x in enumerate(x0))),
        ],
        rounds,
    )
    each = 1e3 / SLOTS
    return {
        "fp32_ms": each * float(np.median(fp32)),
        "bf16_ms": each * float(np.median(bf16)),
        "numpy_ms": each * float(np.median(numpy)) / steps,
    }


def start_up(rounds: int) -> dict[str, Any]:
    """Seconds of ``anofpdm-infer`` on one slice, less those it says it worked."""
    image = nib.load(EXAMPLE).slicer[:, :, 40:41]
    code = "from anofpdm.runtime.cli.infer import main; main()"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        volume, stats = Path(folder) / "flair.nii.gz", Path(folder) / "stats.json"
        nib.save(image, volume)
        arguments = [volume, "-o", Path(folder) / "mask.nii.gz", "--stats", stats, "--threads", 1]
        for _ in range(rounds + 1):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True,
                           capture_output=True)  # fmt: skip
            took = time.perf_counter() - began
            found.append(took - json.loads(stats.read_text(encoding="utf-8"))["seconds"])
    found = found[1:]  # the first one reads files for the first time
    return {"start_up_s": [float(np.median(found)), min(found), max(found)]}


def convolution(channels: int, shape: tuple[int, ...]) -> bytes:
    """An ONNX file of one 3x3 convolution that keeps its shape."""
    w = np.random.default_rng(1).standard_normal((channels, channels, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    opset = helper.make_opsetid("", 18)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString())


def eager_convolution(channels: int, x: np.ndarray) -> Callable[[], object]:
    """The same in PyTorch, whose convolutions are oneDNN's."""
    torch.set_num_threads(1)
    w = np.random.default_rng(1).standard_normal((channels, channels, 3, 3), np.float32)
    both = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: torch.nn.functional.conv2d(*both, padding=1)


def _session(model: bytes, feed: dict[str, np.ndarray]) -> Callable[[], object]:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def in_turn(work: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each, ``rounds`` times, one after the other; warmed up."""
    seconds: list[list[float]] = [[] for _ in work]
    for number in range(rounds + 1):
        for one, found in zip(work, seconds, strict=True):
            began = time.perf_counter()
            one()
            if number:
                found.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
