"""A TensorRT engine, on the device loop's stream and memory."""

from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ...bundle.engines import flavour_of
from ...errors import QUOTED, BundleError, DeviceError, OptionsError, one_line
from .device import Array, Gpu, short_of_memory
from .network import Tensors


def new_log(trt: ModuleType) -> Any:
    """A log that keeps the last errors, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=2)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(one_line(message, QUOTED))

    return Log()


def last_errors(log: Any) -> str:
    """The last errors of a log, in one line."""
    return "; ".join(log.errors)


_INPUTS = ("x_t", "t")
_LITTLE_MIB = 256
_OUTPUTS = ("eps_healthy", "eps_null")


class TrtNetwork:
    """A TensorRT engine; its batch sizes are those that it was built for.

    Parameters
    ----------
    trt : the module ``tensorrt`` or ``tensorrt_rtx``
    engine : its serialised engine, one optimisation profile a batch size
    rebuild : the repair, for messages

    Raises
    ------
    BundleError
        If it is not an engine that this TensorRT reads on this GPU.
    """

    def __init__(self, gpu: Gpu, trt: ModuleType, engine: bytes, rebuild: str) -> None:
        self._gpu, self._trt, self._rebuild = gpu, trt, rebuild
        self._log = new_log(trt)
        with gpu.current():
            self._runtime: Any = trt.Runtime(self._log)
            self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            self._refuse_without_memory()
            raise BundleError(
                f"the engine cannot be read by {flavour_of(trt)} {trt.__version__} on {gpu.name} "
                f"({last_errors(self._log) or 'it gives no reason'}): {rebuild}"
            )
        self._profiles = {
            int(self._engine.get_tensor_profile_shape("x_t", i)[1][0]): i
            for i in range(self._engine.num_optimization_profiles)
        }
        self.longest = max(self._profiles)
        self._contexts: list[Any] = []
        self._scratch: list[Array] = []

    @property
    def capturable(self) -> bool:
        """Whether what is bound can be captured; TensorRT-RTX knows only once it has run."""
        checks = [getattr(context, "is_stream_capturable", None) for context in self._contexts]
        return all(check is None or check(self._gpu.stream) for check in checks)

    def widths(self, slots: int) -> tuple[int, ...]:
        """The engine's batch sizes, up to the smallest that holds all slots.

        Raises
        ------
        OptionsError
            If there are more slots than the engine's largest batch holds.
        """
        widths = sorted(self._profiles)
        if slots > self.longest:
            raise OptionsError(
                f"the engine is for at most {self.longest} slots, not {slots}: use --slots "
                f"{self.longest}, or {self._rebuild}"
            )
        enough = next(i for i, width in enumerate(widths) if width >= slots)
        return tuple(widths[: enough + 1])

    def bind(self, tensors: Tensors, width: int) -> Callable[[], None]:
        """Make an execution context for this batch size, as CUDA graphs need it; all share their
        scratch memory, since they never run at the same time."""
        profile = self._profiles[width]
        with self._gpu.current():
            context = self._new_context()
            used = context and context.set_optimization_profile_async(profile, self._gpu.stream)
        if not used:
            raise self._failed(f"the engine's profile for {width} slots cannot be used")
        self._gpu.wait()
        bound = True
        for name in _INPUTS:
            array: Array = getattr(tensors, name)
            bound &= bool(context.set_input_shape(name, (width, *array.shape[1:])))
        for name in (*_INPUTS, *_OUTPUTS):
            bound &= bool(context.set_tensor_address(name, getattr(tensors, name).address))
        if not bound:
            raise BundleError(f"the engine's inputs and outputs are not the bundle's: "
                              f"{self._rebuild}")  # fmt: skip
        scratch = self._scratch_for(profile)
        context.set_device_memory(scratch.address, scratch.nbytes)
        self._contexts.append(context)

        def predict() -> None:
            with self._gpu.current():
                runs = context.execute_async_v3(self._gpu.stream)
            if not runs:
                raise self._failed("the engine does not run")

        return predict

    def _new_context(self) -> Any:
        """An execution context whose scratch memory is ours, and whose kernels are the final ones.

        TensorRT-RTX compiles kernels when they are needed, and otherwise begins with others, which
        a CUDA graph would keep for good.
        """
        trt, engine = self._trt, self._engine
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            return engine.create_execution_context(ours)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        return engine.create_execution_context(config)

    def _scratch_for(self, profile: int) -> Array:
        """Memory for a context's intermediate results."""
        needed = max(int(self._engine.get_device_memory_size_for_profile_v2(profile)), 256)
        for array in self._scratch:
            if array.nbytes >= needed:
                return array
        self._scratch.append(self._gpu.array((needed,), np.uint8))
        return self._scratch[-1]

    def _failed(self, failure: str) -> DeviceError:
        self._refuse_without_memory()
        reason = last_errors(self._log) or "it gives no reason"
        return DeviceError(
            f"{failure} on {self._gpu.name} ({reason}): {self._rebuild}, or use --device cpu"
        )

    def _refuse_without_memory(self) -> None:
        """TensorRT does not say so where memory is short: its calls just fail."""
        if self._gpu.memory_mib()[0] < _LITTLE_MIB:
            raise short_of_memory()

    def release(self) -> None:
        """Drop the contexts and their scratch memory."""
        self._contexts.clear()
        for array in self._scratch:
            array.free()
        self._scratch.clear()

    def close(self) -> None:
        """Drop the engine, too."""
        self.release()
        self._engine = self._runtime = None
