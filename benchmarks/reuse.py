"""Does it pay to keep deep features from one visited timestep to the next, as DeepCache does?

``python benchmarks/reuse.py SLICES --split val --every 4``

At every second or third visited timestep the whole U-Net is computed; at those between, only its
outermost blocks, which meet what the deep ones said last (Ma et al., "DeepCache: Accelerating
Diffusion Models for Free", 2024). Beside it stands what costs at most as much and needs no cache:
fewer timesteps, with the w and M_max of the preset. Dice and AUPRC are those of unhealthy slices,
each segmented whatever the decision; all rows are computed by PyTorch, with the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from lesions import lesions_found, with_lesions
from machine import machine, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anofpdm.calibrate.bootstrap import Bootstrap
from anofpdm.export.both_labels import BothLabels
from anofpdm.runtime.backends.base import Float32
from anofpdm.runtime.bundle.bundle import DEFAULT, Bundle, open_bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.method.process import Process
from anofpdm.runtime.util.files import write_json
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.dataset import SliceSet
from anofpdm.train.unet import UNet, _run, timestep_embedding

_HERE = Path(__file__).parent
_SLOTS = 4
Int64 = np.ndarray[Any, np.dtype[np.int64]]


class Reusing:
    """A denoiser (:class:`anofpdm.runtime.backends.base.Denoiser`) that keeps deep features.

    The slices of a batch must stand at the same timestep and be the same ones until the last: so
    they do where all enter together and none stops early.

    Parameters
    ----------
    network : folded, in float32
    timesteps : (n,) 1-based, that are visited
    interval : the whole network is computed at every ``interval``-th of them
    depth : how many blocks on the way down, and as many on the way up, are computed at every one
    """

    def __init__(self, network: BothLabels, timesteps: Int64, interval: int, depth: int) -> None:
        blocks = len(network.unet.output_blocks)
        if not (1 <= depth <= blocks and interval >= 1):
            raise ValueError(f"interval from 1, depth 1 to {blocks}, not {interval} and {depth}")
        self._network, self._timesteps = network, timesteps
        self._interval, self._depth = interval, depth
        self._deep: Tensor | None = None

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.backends.base.Denoiser`."""
        if len(set(t.tolist())) > 1:
            raise ValueError("these slices stand at different timesteps")
        visited = int(np.searchsorted(self._timesteps, t[0]))
        deep = self._deep if visited % self._interval else None
        with torch.no_grad():
            eps, self._deep = self._predict(torch.from_numpy(x_t), torch.from_numpy(t - 1), deep)
        healthy, null = eps.numpy().reshape(2, *x_t.shape)
        return healthy, null

    def _predict(self, x_t: Tensor, t: Tensor, deep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both labels' eps, (2B, C, H, W), and the feature to keep."""
        unet, rows = self._network.unet, self._network.label_rows
        x, when = torch.cat([x_t, x_t]), torch.cat([t, t])
        emb = unet.time_embed(timestep_embedding(when, unet.config.base_width))
        if unet.config.label_in == "both":
            emb = emb + rows.repeat_interleave(len(t), dim=0)
        predicted, deep = split_layers(unet, x, emb, self._depth, deep)
        return unet.as_eps(predicted, x, when), deep


def split_layers(
    unet: UNet, x: Tensor, emb: Tensor, depth: int, deep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :meth:`UNet.layers` of a folded network, cut at a skip connection.

    ``deep``: what enters the last ``depth`` blocks on the way up, computed where it is None.

    Returns
    -------
    what the layers predict, and ``deep``
    """
    none = torch.empty(0)  # folded attention needs no labels
    h = F.pixel_unshuffle(x, unet.config.patch) if unet.config.patch > 1 else x
    skips = []
    for block in list(unet.input_blocks)[: None if deep is None else depth]:
        h = _run(block, h, emb, none, none)
        skips.append(h)
    up = list(unet.output_blocks)
    if deep is None:
        h = _run(unet.middle_block, h, emb, none, none)
        for block in up[:-depth]:
            h = _run(block, torch.cat([h, skips.pop()], dim=1), emb, none, none)
        deep = h
    h = deep
    for block in up[-depth:]:
        h = _run(block, torch.cat([h, skips.pop()], dim=1), emb, none, none)
    h = unet.out(h)
    return (F.pixel_shuffle(h, unet.config.patch) if unet.config.patch > 1 else h), deep


@dataclass(frozen=True)
class Cheaper:
    """A step that reuses, as shares of a whole one."""

    flop: float
    seconds: float


def cheaper(network: BothLabels, depths: list[int], rounds: int) -> dict[int, Cheaper]:
    """What such steps cost: FLOP of convolutions and products, processor time of batches taken in
    turn (medians of the ratios)."""
    config = network.unet.config
    shape = (_SLOTS, config.in_channels, config.image_size, config.image_size)
    x_t = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    pair, flop = np.array([1, 2]), {}
    seconds = np.empty((rounds, 2, len(depths)))
    for depth in depths:
        denoiser = Reusing(network, pair, 2, depth)
        for k, t in enumerate(pair):
            with FlopCounterMode(display=False) as counter:
                denoiser(x_t, np.full(_SLOTS, t))
            flop[depth, k] = counter.get_total_flops()
    for i in range(rounds):
        for j, depth in enumerate(depths):
            denoiser = Reusing(network, pair, 2, depth)
            for k, t in enumerate(pair):
                began = time.process_time()
                denoiser(x_t, np.full(_SLOTS, t))
                seconds[i, k, j] = time.process_time() - began
    ratios = np.median(seconds[:, 1] / seconds[:, 0], axis=0)
    return {
        depth: Cheaper(flop[depth, 1] / flop[depth, 0], float(ratio))
        for depth, ratio in zip(depths, ratios, strict=True)
    }


def fewer(bundle: Bundle, preset: str, count: int) -> Bundle:
    """The bundle with at most ``count`` timesteps in a preset, and its w and M_max as they were."""
    held = bundle.calibrations[preset]
    conditions = replace(held.conditions, stride=max(1, (held.conditions.L - 1) // (count - 1)))
    changed = replace(held, conditions=conditions, plausibility=None, early_stop=None)
    return replace(bundle, calibrations={preset: changed})


@dataclass(frozen=True)
class Row:
    """What is evaluated, with its cost in whole steps."""

    name: str
    bundle: Bundle
    interval: int
    depth: int
    flop: float
    seconds: float


def list_rows(
    bundle: Bundle, preset: str, intervals: tuple[int, ...], costs: dict[int, Cheaper], blocks: int
) -> Iterator[Row]:
    """The preset as it is, every reuse, and fewer timesteps that cost at most as much.

    ``blocks``: how many the network has on its way up.
    """
    n, whole = len(process(bundle, preset).timesteps), min(costs)
    yield Row("every step whole", bundle, 1, whole, n, n)
    counts = set()
    for interval in intervals:
        anew = len(range(0, n, interval))
        for depth, cost in costs.items():
            flop, seconds = (anew + (n - anew) * share for share in (cost.flop, cost.seconds))
            counts.add(int(flop))
            name = f"whole at every {interval}. step, {depth} of {blocks} blocks between"
            yield Row(name, bundle, interval, depth, flop, seconds)
    for count in sorted(counts, reverse=True):
        thinned = fewer(bundle, preset, count)
        left = len(process(thinned, preset).timesteps)
        yield Row("fewer timesteps", thinned, 1, whole, left, left)


def process(bundle: Bundle, preset: str) -> Process:
    """Which timesteps a preset visits."""
    return resolve(bundle, Options(preset=preset, early_stop=False)).process


def evaluated(row: Row, network: BothLabels, preset: str, slices: SliceSet) -> dict[str, Any]:
    """A row's figures, as JSON holds them."""
    timesteps = process(row.bundle, preset).timesteps
    denoiser = Reusing(network, timesteps, row.interval, row.depth)
    return {
        "variant": row.name,
        "interval": row.interval,
        "depth": row.depth if row.interval > 1 else None,
        "timesteps": len(timesteps),
        "flop_steps": row.flop,
        "seconds_steps": row.seconds,
        **lesions_found(row.bundle, denoiser, slices, preset),
    }


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path),
              default=_HERE / "checkpoints" / "anofpdm-flair-light.pt")  # fmt: skip
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--preset", default="fast", show_default=True)
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=8, show_default=True, help="Use every k-th slice only.")
@click.option("--interval", "intervals", multiple=True, default=(2, 3), show_default=True)
@click.option("--depth", "depths", multiple=True, default=(1, 2, 4), show_default=True)
@click.option("--rounds", default=15, show_default=True, help="Timings of each kind of step.")
@click.option("--json", "json_path", type=click.Path(path_type=Path),
              default=_HERE / "results" / "reuse.json")  # fmt: skip
@reports_errors
def main(
    slices: Path,
    checkpoint: Path,
    bundle: Path,
    preset: str,
    split: str,
    every: int,
    intervals: tuple[int, ...],
    depths: tuple[int, ...],
    rounds: int,
    json_path: Path,
) -> None:
    torch.set_num_threads(1)
    opened = open_bundle(bundle)
    labelled = with_lesions(slices, opened, split, every)
    network = BothLabels(load_checkpoint(checkpoint).network(), "fp32")
    costs = cheaper(network, list(depths), rounds)
    results: list[dict[str, Any]] = []
    for row in list_rows(opened, preset, intervals, costs, len(network.unet.output_blocks)):
        result = evaluated(row, network, preset, labelled)
        results.append({**result, **beside(result, (results or [result])[0], labelled)})
        click.echo(" | ".join(line(results[-1], results[0])), err=True)
    about = {**machine("torch"), "threads": 1}
    settings = {"preset": preset, "split": split, "every": every, "slices": len(labelled)}
    write_json(json_path, {"machine": about, **settings, "rows": results})
    patients = len(set(labelled.patients))
    caption = f"{len(labelled)} unhealthy slices of {patients} patients of the {split} split"
    lines = [line(result, results[0]) for result in results]
    click.echo(f"{about}\n\n{caption}, preset {preset}\n\n{table(HEAD, lines)}")


def beside(
    result: dict[str, Any], whole: dict[str, Any], slices: SliceSet
) -> dict[str, float | tuple[float, float]]:
    """What of the Dice is lost, slice by slice, with its 95 % interval over patients."""
    lost = np.subtract(result["dice_each"], whole["dice_each"])
    interval = Bootstrap(slices.patients).mean(np.array(slices.patients), lost)
    return {"dice_gained": float(lost.mean()), "dice_gained_interval": interval}


HEAD = ["variant", "timesteps", "FLOP, of the preset's", "time, of the preset's", "Dice", "AUPRC",
        "Dice gained [95 %]"]  # fmt: skip


def line(result: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    low, high = result["dice_gained_interval"]
    return [
        result["variant"],
        str(result["timesteps"]),
        *(f"{result[key] / whole[key]:.2f}" for key in ("flop_steps", "seconds_steps")),
        f"{result['dice']:.3f}",
        f"{result['auprc']:.3f}",
        f"{result['dice_gained']:+.3f} [{low:+.3f}, {high:+.3f}]",
    ]


if __name__ == "__main__":
    main()
