"""The gate: an engine is kept only if the whole loop finds with it what the CPU finds."""

import types
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from host_gpu import HostGpu, HostNetwork
from support import bundle as toy_bundle
from support import toy_network

from anofpdm.export import cli as engine_main
from anofpdm.export.bundle_update import write_calibration, write_manifest
from anofpdm.export.cli import main
from anofpdm.export.parity import Parity, Trial, compare
from anofpdm.export.tensorrt import verify as build
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.engines import ENGINES, find_engine, read_engine
from anofpdm.runtime.errors import BundleError, DeviceError, EngineError, ParityError
from anofpdm.runtime.util.files import sha256

TRT = types.SimpleNamespace(__name__="tensorrt", __version__="11.4.0.106")


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "toy.anofpdm"
    path.mkdir()
    for name in (NETWORK, NETWORK_FP16):
        (path / name).write_bytes(name.encode())
    files = {name: sha256(path / name) for name in (NETWORK, NETWORK_FP16)}
    toy = toy_bundle(files=files, process=("ddim", 301, 60, "log-snr"))
    write_manifest(path, toy.manifest)
    write_calibration(open_bundle(path), "fast", toy.calibrations["fast"])
    return open_bundle(path)


@pytest.fixture
def engine(monkeypatch):
    """What the engine that is built computes; holds what it was built with."""
    made = types.SimpleNamespace(computes=toy_network, arguments=None)

    def build_engine(trt, network, slots, **options):
        made.arguments = (trt, network.name, slots, options)
        return b"an engine"

    def load(gpu, trt, content, repair):
        assert content == b"an engine"
        return HostNetwork(gpu, made.computes, widths=(1, 4, 16))

    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(build, "TrtNetwork", load)
    monkeypatch.setattr(build, "OnnxDenoiser", lambda path: toy_network)
    return made


def rounded(x_t, t):
    """The toy network in half precision."""
    return tuple(eps.astype(np.float16).astype(np.float32) for eps in toy_network(x_t, t))


def test_an_engine_that_agrees_is_kept_with_its_figures(bundle, engine):
    engine.computes = rounded
    made = build.build_on(HostGpu(), TRT, bundle, (1, 4, 16), workspace_mib=100)
    _, network, slots, options = engine.arguments
    assert (network, slots) == (NETWORK_FP16, (1, 4, 16))
    assert options["workspace_mib"] == 100
    assert options["compute_capability"] == "9.0"
    assert options["timing_cache"].parent == bundle.path / ENGINES
    kept = open_bundle(bundle.path)
    found = find_engine(
        kept, gpu="Host", compute_capability="9.0", flavour="tensorrt", version=TRT.__version__
    )
    assert found == made
    assert found.slots == (1, 4, 16)
    assert read_engine(kept, found) == b"an engine"
    assert 0 < found.parity["M_t"] < 0.02
    assert (found.parity["t_e"], found.parity["dice"] > 0.98) == (1.0, True)


def louder(x_t, t):
    healthy, null = toy_network(x_t, t)
    return null + 1.02 * (healthy - null), null


def later(x_t, t):
    """The guidance of another timestep: the peak moves."""
    return toy_network(x_t, t)[0] * 0 + toy_network(x_t, np.maximum(t - 150, 1))[0], toy_network(
        x_t, t
    )[1]


@pytest.mark.parametrize(("computes", "figure"), [(louder, "M_t"), (later, "eps")])
def test_an_engine_that_does_not_agree_is_not_kept(bundle, engine, computes, figure):
    engine.computes = computes
    with pytest.raises(
        ParityError, match=f"the engine differs from the FP32 network on the CPU: {figure} .*"
    ) as caught:
        build.build_on(HostGpu(), TRT, bundle, (1, 16))
    assert str(caught.value).endswith("it was not kept")
    assert open_bundle(bundle.path).manifest.engines == {}
    assert not (bundle.path / ENGINES).exists()
    made = build.build_on(HostGpu(), TRT, bundle, (1, 16), tolerance=None)
    assert made.parity[figure] > 0.02


def test_the_timing_cache_has_a_place(bundle, engine, monkeypatch):
    """TensorRT writes it before there is an engine; no empty folder is left without either."""
    write = build.build_engine

    def build_engine(trt, network, slots, *, timing_cache, **options):
        timing_cache.write_bytes(b"times")
        return write(trt, network, slots, timing_cache=timing_cache, **options)

    monkeypatch.setattr(build, "build_engine", build_engine)
    build.build_on(HostGpu(), TRT, bundle, (1, 16))
    assert (bundle.path / ENGINES / "sm90_tensorrt-11.4.0.106.timing").read_bytes() == b"times"


def test_an_engine_that_this_gpu_does_not_run(bundle, engine, monkeypatch):
    def load(gpu, trt, content, repair):
        raise BundleError(f"the engine cannot be read: {repair}")

    monkeypatch.setattr(build, "TrtNetwork", load)
    with pytest.raises(EngineError, match=r"does not run here: .* or --flavour"):
        build.build_on(HostGpu(), TRT, bundle, (1, 16))


def test_the_gpu_s_memory_is_given_back(bundle, engine):
    gpu = HostGpu()
    build.build_on(gpu, TRT, bundle, (1, 16))
    assert gpu.used == 0


def test_t_e_may_move_by_one_visited_timestep_and_not_by_two(bundle):
    """Visited timesteps are not evenly spaced here."""
    trial = Trial.of(bundle)
    timesteps = trial.recipe.process.timesteps
    assert len(set(np.diff(timesteps))) > 1

    def peaking(place):
        def network(x_t, t):
            null = np.zeros_like(x_t)
            high = (np.asarray(t) == timesteps[place])[:, None, None, None]
            abar = trial.recipe.process.schedule.abar[np.asarray(t) - 1][:, None, None, None]
            scale = np.sqrt(abar / (1 - abar)) * np.where(high, 0.02, 0.01)
            return (null + scale).astype(np.float32), null

        return NumpyBackend(network)

    for apart, share in ((1, 1.0), (2, 0.0)):
        assert compare(peaking(2), peaking(2 + apart), trial).t_e == share
    assert compare(peaking(2), peaking(2), trial) == Parity(0, 0, 0, 1, 1)


def test_the_trial_does_what_the_calibration_does(bundle):
    stronger = replace(bundle, calibrations={"fast": replace(bundle.calibrations["fast"], w=7.0)})
    trial = Trial.of(stronger)
    assert len(trial.x0) == 16
    assert (trial.recipe.process.spacing, trial.recipe.w) == ("log-snr", 7.0)
    # Not where that takes too long, nor where there is none.
    calibration = replace(bundle.calibrations["fast"], conditions=bundle.conditions("ddim", 301, 1))
    long = replace(bundle, calibrations={"fast": calibration})
    for other in (long, toy_bundle(calibration=False)):
        assert len(Trial.of(other).recipe.process.timesteps) == 6


def test_the_command(bundle, engine, monkeypatch):
    monkeypatch.setattr(engine_main, "Gpu", ToyGpu)
    monkeypatch.setattr(engine_main, "load_tensorrt", lambda name=None: TRT)
    done = CliRunner().invoke(main, ["engine", str(bundle.path), "--slots", "16,1"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("engine host_sm90_tensorrt-11.4.0.106_fp16_")
    assert "mask Dice 1.0000" in done.output
    assert engine.arguments[2] == (1, 16)
    done = CliRunner().invoke(main, ["engine", str(bundle.path), "--slots", "1,x"])
    assert done.exit_code == 2
    assert "give whole numbers from 1" in done.output


def test_the_command_without_a_gpu(bundle, monkeypatch):
    def no_gpu(index):
        raise DeviceError("no NVIDIA driver: install one")

    monkeypatch.setattr(engine_main, "Gpu", no_gpu)
    done = CliRunner().invoke(main, ["engine", str(bundle.path)])
    assert (done.exit_code, done.output) == (2, "error: no NVIDIA driver: install one\n")


class ToyGpu(HostGpu):
    """A HostGpu as the commands open one."""

    def __init__(self, index):
        super().__init__()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
