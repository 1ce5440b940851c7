"""What the exporter's simplifications give: ``python benchmarks/graph.py``.

Every network is exported as it is and simplified; ONNX Runtime runs the graphs in turn on the CPU,
so that whatever else the machine does meets all of them. Judge by the ratios.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from machine import machine, table
from networks import FULL, LIGHT, SMALL, parameters, randomised
from onnx_cost import flop
from tabulated import Tabulated

from anofpdm.export.both_labels import BothLabels
from anofpdm.export.onnx_file import export_onnx, halve_weights
from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.util.files import write_json
from anofpdm.train.config import UNetConfig
from anofpdm.train.unet import UNet

Make = Callable[[UNet], BothLabels]
BEFORE: dict[str, Make] = {
    "as trained": lambda unet: BothLabels(unet, "fp32", folded=False),
    "folded (exported)": lambda unet: BothLabels(unet, "fp32"),
}
TABLES: dict[str, Make] = {
    "folded, table of embeddings": lambda unet: Tabulated(unet, per_block=False),
    "folded, tables of scale and shift": lambda unet: Tabulated(unet, per_block=True),
}
# What is measured: the variants, the batch, how often.
MEASURED: dict[str, tuple[UNetConfig, dict[str, Make], int, int]] = {
    "light, 1 x 128 x 128": (LIGHT, {**BEFORE, **TABLES}, 4, 60),
    "fixture, 2 x 64 x 64": (SMALL, {**BEFORE, **TABLES}, 4, 40),
    "reference, 4 x 128 x 128": (FULL, BEFORE, 1, 12),
}
HEAD = ["network", "M parameters", "graph", "nodes", "after ONNX Runtime", "GFLOP a call",
        "MB in FP16", "batch", "ms [quartiles]", "time ratio [quartiles]", "eps apart"]  # fmt: skip


@click.command()
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path),
              default=Path(__file__).with_name("results") / "graph.json")  # fmt: skip
def main(threads: int, path: Path) -> None:
    """Nodes, FLOP, size and latency of the graphs, before and after."""
    about, results = {**machine("torch", "onnx"), "threads": threads}, []
    for name, (config, variants, batch, rounds) in MEASURED.items():
        results += measure(name, config, variants, batch, rounds, threads)
    write_json(path, {"machine": about, "graphs": results})
    click.echo(f"{about}\n\nA call is both labels, batch 1 for GFLOP; multiply and add apart.\n")
    click.echo(table(HEAD, [row(result) for result in results]) + "\n")
    for line in reasons(results):
        click.echo(line)


def measure(
    name: str, config: UNetConfig, variants: dict[str, Make], batch: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """One result a variant, timed in turn; ratios are to the first variant of the same round."""
    unet, rng = randomised(config), np.random.default_rng(0)
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    feed = {"x_t": rng.standard_normal(shape).astype(np.float32), "t": rng.integers(0, 600, batch)}
    results, sessions = [], []
    with tempfile.TemporaryDirectory() as folder:
        for variant, make in variants.items():
            file, optimised = Path(folder) / "unet.onnx", Path(folder) / "optimised.onnx"
            export_onnx(make(copy.deepcopy(unet)), file)
            sessions.append(session(file, optimised, threads))
            model = onnx.load(file)
            result = {"network": name, "parameters_m": parameters(unet), "graph": variant,
                      "nodes": len(model.graph.node), "nodes_optimised":
                      len(onnx.load(optimised).graph.node), "gflop": flop(model) / 1e9,
                      "batch": batch, "rounds": rounds}  # fmt: skip
            halve_weights(model)
            results.append({**result, "fp16_mb": len(model.SerializeToString()) / 1e6})
            click.echo(f"{name}: {variant} exported", err=True)
    outputs = [np.stack(one.run(None, feed)) for one in sessions]
    seconds = np.empty((rounds, len(sessions)))
    for i in range(rounds):
        for j, one in enumerate(sessions):
            began = time.perf_counter()
            one.run(None, feed)
            seconds[i, j] = time.perf_counter() - began
    for j, result in enumerate(results):
        result["latency_ms"] = quartiles(1e3 * seconds[:, j])
        result["ratio"] = quartiles(seconds[:, j] / seconds[:, 0])
        apart = np.abs(outputs[j] - outputs[0]).max() / np.abs(outputs[0]).max()
        result["eps_apart"] = float(apart)
    return results


def reasons(results: list[dict[str, Any]]) -> list[str]:
    """Why the tables are left out of the export, in the figures just measured."""
    by_graph = {(result["network"], result["graph"]): result for result in results}
    lines = []
    for (network, graph), result in by_graph.items():
        if graph not in TABLES:
            continue
        folded = by_graph[network, "folded (exported)"]
        faster = 1 - result["latency_ms"][1] / folded["latency_ms"][1]
        low, middle, high = folded["latency_ms"]
        larger = result["fp16_mb"] / folded["fp16_mb"] - 1
        lines.append(
            f"{network}, {graph}: {faster:+.1%} faster than folded alone, its quartiles spread by "
            f"{(high - low) / middle:.1%}; {larger:+.0%} in size ({result['fp16_mb']:.1f} MB)"
        )
    return lines


def session(file: Path, optimised: Path, threads: int) -> Any:
    """An ONNX Runtime session as the runtime makes it, its optimised graph written beside."""
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def quartiles(values: np.ndarray) -> list[float]:
    """First, median, third."""
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def row(result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    low, middle, high = result["latency_ms"]
    few, ratio, many = result["ratio"]
    return [
        result["network"], f"{result['parameters_m']:.2f}", result["graph"], str(result["nodes"]),
        str(result["nodes_optimised"]), f"{result['gflop']:.2f}", f"{result['fp16_mb']:.1f}",
        str(result["batch"]), f"{middle:.1f} [{low:.1f}, {high:.1f}]",
        f"{ratio:.3f} [{few:.3f}, {many:.3f}]", f"{result['eps_apart']:.1e}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
