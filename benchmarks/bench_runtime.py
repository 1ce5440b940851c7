"""Speed of the runtime's parts on this machine: ``python -m pytest benchmarks/bench_runtime.py``.

Compare the printed ratios within one run; absolute times depend on the machine and its load.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from anofpdm.runtime.forward import Slice, run
from anofpdm.runtime.host_row import HostRow
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.select import AnomalyDigest


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load()


def noise(segmenter: Segmenter, count: int) -> np.ndarray:
    manifest = segmenter.bundle.manifest
    shape = (count, len(manifest.modalities), manifest.grid.size, manifest.grid.size)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 4])
def test_network(benchmark: BenchmarkFixture, segmenter: Segmenter, batch: int) -> None:
    x_t, t = noise(segmenter, batch), np.full(batch, 100)
    benchmark(segmenter._denoiser, x_t, t)


def test_bookkeeping_of_a_slice(benchmark: BenchmarkFixture, segmenter: Segmenter) -> None:
    """The forward process with a network that costs nothing."""
    x0 = noise(segmenter, 1)
    free = lambda x_t, t: (x_t, x_t)  # noqa: E731
    setup = segmenter.setup
    w = setup.calibration.w
    benchmark(
        lambda: list(
            run(HostRow(setup.process, free, lambda: AnomalyDigest(w, (0,))), [Slice(0, x0[0])])
        )
    )


def test_slice(benchmark: BenchmarkFixture, segmenter: Segmenter) -> None:
    x0 = noise(segmenter, 1)
    benchmark(lambda: list(segmenter.analyse([Slice(0, x0[0])])))
