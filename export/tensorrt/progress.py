"""Progress of a TensorRT build, and Ctrl-C during it."""

import gc
import signal
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

Progress = Callable[[str, float], None]


class BuildProgress:
    """A context in which a builder reports its phases and Ctrl-C ends the build.

    TensorRT calls back from C++, from any thread, and loses exceptions of ``progress`` and
    KeyboardInterrupt. They are kept, the build is cancelled, and they are raised at the end of the
    context. Phases are nested; their steps are assumed to last equally long.

    Garbage collection is off in the context: TensorRT holds a lock while it logs, which it also
    needs to destroy a builder, and would deadlock.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        # Running phases: parent, number of steps, finished steps.
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._reported = 0.0
        self._failure: BaseException | None = None
        self._handler: Any = None
        self._collects = False
        self._monitor: Any = None

    def attach(self, trt: ModuleType, config: Any) -> None:
        """Follow builds with this configuration, if this TensorRT reports progress."""
        if hasattr(trt, "IProgressMonitor"):
            # The monitor must outlive the builds.
            self._monitor = _new_monitor(trt, self)
            config.progress_monitor = self._monitor

    def __enter__(self) -> "BuildProgress":
        python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if python and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupted)
        self._collects = gc.isenabled()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._collects:
            gc.enable()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if self._failure is not None:
            raise self._failure

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of the build begins."""
        with self._lock:
            self._phases[phase] = (parent, max(steps, 1), 0)

    def step(self, phase: str) -> bool:
        """A step of a phase is finished; False cancels the build."""
        with self._lock:
            parent, steps, done = self._phases.get(phase, (None, 1, 0))
            self._phases[phase] = (parent, steps, min(done + 1, steps))
            self._reported = max(self._reported, self._share(None))
        self._report(phase)
        return self._failure is None

    def finish(self, phase: str) -> None:
        """A phase of the build ends, perhaps without its last steps."""
        with self._lock:
            parent, _, _ = self._phases.pop(phase, (None, 1, 0))
            ended = parent is None and self._failure is None
            self._reported = 1.0 if ended else self._reported
        if ended:
            self._report(phase)

    def _report(self, phase: str) -> None:
        if self._progress is not None and self._failure is None:
            try:
                self._progress(phase, self._reported)
            except BaseException as error:
                self._failure = error

    def _share(self, parent: str | None) -> float:
        """The finished share of the furthest phase below ``parent``, 0 to 1."""
        shares = [
            (done + self._share(name)) / steps if done < steps else 1.0
            for name, (above, steps, done) in self._phases.items()
            if above == parent
        ]
        return max(shares, default=0.0)

    def _interrupted(self, *_: object) -> None:
        self._failure = KeyboardInterrupt()


def _new_monitor(trt: ModuleType, build: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            build.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return build.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            build.finish(phase_name)

    return Monitor()
