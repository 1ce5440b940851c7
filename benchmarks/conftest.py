"""The fixture ``against``: a benchmark beside its counterpart. What is kept is the ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from machine import machine
from pytest_benchmark.fixture import BenchmarkFixture
from ratios import RECORDED, Against, compared, lines, recorded, regressed

from anofpdm.runtime.backends.cpu.threads import usable_cores
from anofpdm.runtime.util.files import write_json

_FOUND: dict[str, dict[str, Any]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="Keep these ratios as those to hold.")


@pytest.fixture
def against(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Against:
    """``against(ours, theirs, rounds=5)``: time both in turn, and compare their ratio with the one
    that was recorded: more than 20 % less fails, unless ratios are being recorded."""

    def run(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5) -> None:
        times: list[float] = []

        def before() -> None:
            began = time.perf_counter()
            theirs()
            times.append(time.perf_counter() - began)

        ours()
        before()  # both warmed up
        times.clear()
        benchmark.pedantic(ours, setup=before, rounds=rounds)
        found = compared(benchmark.stats.stats.data, times)
        benchmark.extra_info.update(found)
        name = request.node.name
        _FOUND[name] = found
        if request.config.getoption("--record"):
            return
        held = recorded().get(name)
        assert held, f"no ratio is recorded for {name}: run once with --record"
        ratio, before_now = found["ratio"], held["ratio"]
        assert not regressed(ratio, before_now), (
            f"{ratio:.2f} times as fast as its counterpart, {before_now:.2f} was recorded"
        )

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FOUND:
        terminalreporter.section("times as fast as the counterpart: median [quartiles]")
    for line in lines(_FOUND):
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _FOUND and session.config.getoption("--record"):
        about = {**machine("torch", "openvino", "pytest-benchmark"), "threads": usable_cores()}
        write_json(RECORDED, {"machine": about, "benchmarks": {**recorded(), **_FOUND}})
