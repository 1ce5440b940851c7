"""The fixture ``compare``: a benchmark and its counterpart, timed in turn."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from common import machine
from pytest_benchmark.fixture import BenchmarkFixture
from ratios import RECORDED, Compare, recorded, regressed, summary

from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.util.files import write_json

_SUMMARIES: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="Record these ratios.")


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """``compare(ours, counterpart, rounds=5)`` fails where the ratio of seconds is more than 20 %
    smaller than the recorded one, unless ratios are being recorded."""

    def run(ours: Callable[[], object], counterpart: Callable[[], object], rounds: int = 5) -> None:
        times: list[float] = []

        def before() -> None:
            began = time.perf_counter()
            counterpart()
            times.append(time.perf_counter() - began)

        ours()
        before()  # both warmed up
        times.clear()
        benchmark.pedantic(ours, setup=before, rounds=rounds)
        name, now = request.node.name, summary(benchmark.stats.stats.data, times)
        _SUMMARIES[name] = now
        if request.config.getoption("--record"):
            return
        assert name in recorded(), f"no ratio is recorded for {name}: run once with --record"
        ratio, reference = now["ratio"], recorded()[name]["ratio"]
        assert not regressed(ratio, reference), (
            f"{ratio:.2f} times as fast as its counterpart, {reference:.2f} was recorded"
        )

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("times as fast as the counterpart: median [quartiles]")
    for name, now in _SUMMARIES.items():
        values = now["ratio"], *now["quartiles"], recorded().get(name, {}).get("ratio", 0)
        line = "{:8.2f} [{:.2f}, {:.2f}]  recorded {:.2f}".format(*values)
        terminalreporter.write_line(f"{name:30s} {line}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _SUMMARIES and session.config.getoption("--record"):
        about = {**machine("torch", "openvino", "pytest-benchmark"), "threads": usable_cores()}
        write_json(RECORDED, {"machine": about, "benchmarks": {**recorded(), **_SUMMARIES}})
