"""Parity and speed of the GPU path: a call of some eight minutes, which writes a JSON file.

``python benchmarks/gpu.py prepare reference.skeleton``, with PyTorch, on any machine: the paper's
U-Net as a bundle without weights, about 1 MB. Then, on the machine with the GPU,
``python benchmarks/gpu.py run reference.skeleton``.

For the light preset (the embedded model) and the paper's U-Net, by ONNX Runtime in FP32 and by a
TensorRT engine in FP16: parity of the whole loop with the FP32 network on the CPU, then for 1, 16,
64 and 128 slots the time of a step, and its share of the GPU's ceiling.
"""

import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from ceilings import ceilings
from common import PATH, RESULTS, machine, table, versions
from onnx_cost import flop
from skeleton import fill_weights, strip_weights

from anofpdm.export.parity import FP16_TOLERANCE, FP32_TOLERANCE, Parity, Trial, compare, observe
from anofpdm.export.phantom import phantom_slices
from anofpdm.export.tensorrt.verify import build_on
from anofpdm.runtime.backends.base import Recipe
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cuda.backend import GpuBackend
from anofpdm.runtime.backends.cuda.device import Gpu
from anofpdm.runtime.backends.cuda.layout import LoopLayout
from anofpdm.runtime.backends.cuda.loop import DeviceSlots
from anofpdm.runtime.backends.cuda.open import open_gpu
from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK_FP16, Bundle, open_bundle
from anofpdm.runtime.bundle.engines import load_tensorrt
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.util.files import write_json

SLOTS = (1, 16, 64, 128)
_BUDGET_S, _REPEATS, _WARM = 420, 20, 3
HEAD = ["network", "by", "slots", "network, ms", "step, ms [quartiles]", "bookkeeping", "TFLOP/s",
        "share of the FP16 ceiling", "loop, ms a step", "waits for the host",
        "memory, MiB"]  # fmt: skip
PARITY_HEAD = ["network", "by", "eps", "M_t", "H", "t_e equal", "mask Dice", "accepted"]


@click.group()
def main() -> None:
    """Measure the GPU path."""


@main.command()
@click.argument("skeleton", type=PATH)
def prepare(skeleton: Path) -> None:
    """Write the paper's U-Net, without weights, to the folder SKELETON."""
    import torch

    from anofpdm.export.both_labels import BothLabels
    from anofpdm.export.bundle_writer import write_bundle
    from anofpdm.export.checkpoints import CheckpointOptions, read_source
    from anofpdm.export.onnx_file import export_onnx
    from anofpdm.train.config import UNetConfig
    from anofpdm.train.unet import UNet

    torch.manual_seed(0)
    unet = UNet(UNetConfig(in_channels=4))
    for parameter in unet.parameters():  # some begin as zeros
        parameter.data += 0.01 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as folder:
        weights, bundle = Path(folder) / "reference.pt", Path(folder) / "reference.anofpdm"
        torch.save(unet.state_dict(), weights)
        checkpoint = read_source(weights, CheckpointOptions(("flair", "t1", "t1ce", "t2")))
        write_bundle(checkpoint, bundle, name="reference", fp16=False)
        # Not verified here: random weights make masks of specks, which no two networks share.
        export_onnx(BothLabels(checkpoint.network(), "fp16"), bundle / NETWORK_FP16)
        strip_weights(bundle, skeleton)


@main.command("run")
@click.argument("skeleton", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--gpu", "index", default=0, show_default=True)
@click.option("--budget-s", default=_BUDGET_S, show_default=True, help="Then the rest is left out.")
@click.option("--json", "path", type=PATH, default=RESULTS / "gpu.json")
def run_all(skeleton: Path | None, index: int, budget_s: float, path: Path) -> None:
    """Measure everything that there is time for, and write it down after every part."""
    deadline = time.monotonic() + budget_s
    with Gpu(index) as gpu:
        about = {**machine(), **described(gpu)}
    results: dict[str, Any] = {"machine": about, "ceilings": ceilings(index), "measured": []}
    with tempfile.TemporaryDirectory() as folder:
        light, full = Path(folder) / "light.anofpdm", Path(folder) / "reference.anofpdm"
        shutil.copytree(DEFAULT, light)
        bundles = {"light preset": light}
        if skeleton:
            fill_weights(skeleton, full)
            bundles["reference U-Net"] = full
        subjects: dict[str, Subject] = {}
        for name, place in bundles.items():
            for by in ("cuda", "trt"):
                result: dict[str, Any] = {"network": name, "by": by}
                results["measured"].append(result)
                try:
                    check_time(deadline)
                    if name not in subjects:
                        subjects[name] = Subject.of(place)
                    measure(result, subjects[name], by, index, deadline)
                except Exception as error:  # whatever it is: the rest is measured all the same
                    reason = " ".join(str(error).split())
                    result["not_measured"] = f"{type(error).__name__}: {reason}"
                write_json(path, results)
                click.echo(f"{name} by {by}: {result.get('not_measured', 'done')}", err=True)
    click.echo(report(results))


def check_time(deadline: float) -> None:
    """Stop where there is no time left for the rest."""
    if time.monotonic() > deadline:
        raise TimeoutError("not measured")


@dataclass
class Subject:
    """A bundle to measure, the results of its FP32 network on the CPU, and the FLOP of a slot."""

    bundle: Bundle
    reference: Any
    flop: int

    @classmethod
    def of(cls, path: Path) -> "Subject":
        """Run the network on the CPU, which takes a while."""
        bundle = open_bundle(path)
        reference = observe(NumpyBackend(OnnxDenoiser(bundle.network)), Trial.of(bundle))
        return cls(bundle, reference, flop(onnx.load(bundle.network)))


def measure(result: dict[str, Any], subject: Subject, by: str, index: int, deadline: float) -> None:
    """Fill in the result of a network on a GPU."""
    bundle = subject.bundle
    if by == "trt":
        with Gpu(index) as gpu:
            engine = build_on(gpu, load_tensorrt(), bundle, SLOTS, tolerance=None,
                              reference=subject.reference)  # fmt: skip
        result |= {"engine": engine.file_name, **engine.provenance}
        parity = Parity(**engine.parity)
        bundle = open_bundle(bundle.path)
        check_time(deadline)
    with Gpu(index) as gpu:
        before = gpu.memory_mib()[0]
    backend = open_gpu(by, index, bundle, max(SLOTS))
    try:
        result["device"] = backend.device
        if by == "cuda":
            parity = compare(subject.reference, backend, Trial.of(bundle))
            backend.release()
        tolerance = FP16_TOLERANCE if by == "trt" else FP32_TOLERANCE
        result["parity"] = {**asdict(parity), "accepted": not parity.beyond(tolerance)}
        result["gflop_a_slot"], result["steps"] = subject.flop / 1e9, []
        for slots in SLOTS:
            check_time(deadline)
            result["steps"].append(measure_steps(backend, bundle, slots, before))
    finally:
        backend.close()


def measure_steps(backend: GpuBackend, bundle: Bundle, slots: int, before: float) -> dict[str, Any]:
    """The time of a step: the network alone and with the kernels, on the same slices, and in the
    loop, in which slices enter and leave; ``before``: free MiB before the network was loaded."""
    gpu, network, manifest = backend.gpu, backend.network, bundle.manifest
    channels, size = len(manifest.modalities), manifest.grid.size
    T = manifest.schedule.T
    recipe = Recipe(Process(manifest.schedule, T), 2.0, manifest.scored_channels)
    layout = LoopLayout(recipe, channels, size)
    x0 = phantom_slices(slots, channels, size)
    device_slots = DeviceSlots(gpu, network, layout, slots)
    free = gpu.memory_mib()[0]
    for i, x in enumerate(x0):
        device_slots.enter(Slice(i, x))
    width = max(device_slots.state.launches)
    step = times_ms(gpu, device_slots.state.launches[width])
    predict = network.bind(device_slots.state.tensors, width)
    predict()
    gpu.wait()
    alone = times_ms(gpu, gpu.capture(predict) if network.capturable else predict)
    device_slots.clear()
    device_slots.state.free()
    network.release()

    # Three slices a slot, after one to warm up; as many steps a slice as some seconds allow.
    steps = int(np.clip(1000 / step[1], 2, 20))
    recipe = replace(recipe, process=Process(manifest.schedule, T // 2, T // (2 * steps)))
    visits, walls, backend.slots = len(recipe.process.timesteps), [], slots
    for rounds in (1, 3):
        began = time.perf_counter()
        for _ in backend.run(recipe, (Slice(i, x0[i % slots]) for i in range(rounds * slots))):
            pass
        walls.append(1e3 * (time.perf_counter() - began) / (rounds * visits))
    backend.release()
    return {"slots": slots, "network_ms": alone, "step_ms": step, "loop_ms": walls[-1],
            "memory_mib": before - free}  # fmt: skip


def times_ms(gpu: Gpu, work: Callable[[], None]) -> list[float]:
    """Quartiles of up to 20 after warm-up, in some two seconds, each between two events."""
    marks = [gpu.event(timed=True)]
    for _ in range(_WARM):
        work()
    marks.append(gpu.event(timed=True))
    marks[-1].wait()
    about = marks[1].since_ms(marks[0]) / _WARM
    repeats = int(np.clip(2000 / max(about, 1e-3), 3, _REPEATS))
    marks = [gpu.event(timed=True)]
    for _ in range(repeats):
        work()
        marks.append(gpu.event(timed=True))
    marks[-1].wait()
    times = [later.since_ms(earlier) for earlier, later in itertools.pairwise(marks)]
    return [float(value) for value in np.quantile(times, [0.25, 0.5, 0.75])]


def described(gpu: Gpu) -> dict[str, object]:
    """The GPU, its driver, and the packages that use it."""
    packages = versions("onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "pycuda",
                        "cuda-bindings", "nvidia-cudnn-cu13")  # fmt: skip
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        packages["driver"] = done.stdout.split()[0]
    return {"gpu": gpu.name, "compute_capability": gpu.compute_capability,
            "driver_cuda": gpu.driver, "memory_mib": gpu.memory_mib()[1], **packages}  # fmt: skip


def report(results: dict[str, Any]) -> str:
    """The tables of the README."""
    most = results["ceilings"]["matrix_tflops"]
    parities, steps, missing = [], [], []
    for result in results["measured"]:
        where = [result["network"], result["by"]]
        if "not_measured" in result:
            missing.append(f"{' by '.join(where)}: {result['not_measured']}")
        if "parity" in result:
            p = result["parity"]
            parities.append([*where, *(f"{p[name]:.1e}" for name in ("eps", "M_t", "H")),
                             f"{p['t_e']:.0%}", f"{p['dice']:.4f}",
                             "yes" if p["accepted"] else "no"])  # fmt: skip
        for step in result.get("steps", ()):
            low, middle, high = step["step_ms"]
            rate = result["gflop_a_slot"] * step["slots"] / middle
            steps.append([
                *where, str(step["slots"]), f"{step['network_ms'][1]:.3f}",
                f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                f"{1 - step['network_ms'][1] / middle:.1%}", f"{rate:.1f}",
                f"{rate / most:.1%}" if most else "no ceiling",
                f"{step['loop_ms']:.3f}", f"{max(0, 1 - middle / step['loop_ms']):.1%}",
                f"{step['memory_mib']:.0f}",
            ])  # fmt: skip
    tops = results["ceilings"]
    ceiling = f"ceilings not measured: {tops.get('reason')}"
    if most:
        ceiling = f"FP16 matrix product {most:.0f} TFLOP/s, copy {tops['copy_gb_s']:.0f} GB/s"
    parts = [str(results["machine"]), ceiling, table(PARITY_HEAD, parities), table(HEAD, steps)]
    return "\n\n".join([*parts, *missing])


if __name__ == "__main__":
    main()
