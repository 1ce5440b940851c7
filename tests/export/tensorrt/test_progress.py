"""A build says where it is, and can be ended; real builder: TensorRT-RTX needs no GPU."""

import gc
import os
import signal
import threading
from types import ModuleType

import pytest
from recorded_tensorrt import LIGHT, Recorder, Wrapped

from anofpdm.export.tensorrt.build import build_engine
from anofpdm.export.tensorrt.progress import BuildProgress


@pytest.fixture
def default_ctrl_c():
    """As in a terminal; a shell starts what runs in the background to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_build(trt, default_ctrl_c):
    reports, built = [], []
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update({**trt.__dict__, "__name__": "tensorrt_rtx"})

    def builder(log):
        real = trt.Builder(log)

        def build_serialized_network(network, config):
            built.append(real.build_serialized_network(network, config))
            return built[-1]

        return Wrapped(real, build_serialized_network=build_serialized_network)

    module.Builder = builder

    def press(phase, share):
        reports.append(phase)
        if len(reports) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(module, LIGHT, (1,), progress=press)
    assert built == [None], "TensorRT went on"
    assert len(reports) == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_network_is_read(trt, default_ctrl_c):
    """Where TensorRT calls a log, an exception would be lost in C++."""
    pressed = []

    class Severity:
        @property
        def ERROR(self):
            if not pressed:
                pressed.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            return trt.ILogger.Severity.ERROR

    class Logger(trt.ILogger):
        pass

    Logger.Severity = Severity()
    recorder = Recorder(trt)
    recorder.module.ILogger = Logger
    recorder.module.Builder = trt.Builder
    with pytest.raises(KeyboardInterrupt):
        build_engine(recorder.module, LIGHT, (1,))
    assert pressed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_shares_of_nested_phases():
    reports = []
    with BuildProgress(lambda *step: reports.append(step)) as watch:
        watch.start("whole", None, 2)
        watch.start("first", "whole", 2)
        assert watch.step("first")
        watch.finish("first")
        watch.step("whole")
        watch.start("second", "whole", 4)
        watch.step("second")
        watch.start("within", "second", 2)
        watch.step("within")
        watch.finish("within")
        watch.finish("whole")
    assert reports == [("first", 0.25), ("whole", 0.5), ("second", 0.625), ("within", 0.6875),
                    ("whole", 1.0)]  # fmt: skip


def test_errors_of_the_progress_callback(trt, capfd):
    def show(phase, share):
        raise OSError("terminal is gone")

    with pytest.raises(OSError, match="terminal is gone"):
        build_engine(trt, LIGHT, (1,), progress=show)
    assert capfd.readouterr() == ("", "")


def test_no_garbage_is_collected_meanwhile(trt):
    """An old builder in a cycle, destroyed while TensorRT logs, is a deadlock."""
    seen = []
    build_engine(trt, LIGHT, (1,), progress=lambda *step: seen.append(gc.isenabled()))
    assert set(seen) == {False}
    assert gc.isenabled()
    gc.disable()
    build_engine(Recorder(trt).module, LIGHT, (1,))
    assert not gc.isenabled()
    gc.enable()


def test_builds_in_a_thread(trt):
    built = []
    thread = threading.Thread(target=lambda: built.append(build_engine(trt, LIGHT, (1,))))
    thread.start()
    thread.join()
    assert len(built[0]) > 1e7
