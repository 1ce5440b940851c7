"""The limits of a GPU: a large FP16 matrix product, a large copy. Through PyTorch, in a new
process: PyTorch brings other versions of the libraries that ONNX Runtime uses."""

import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

_SIZE, _COPY_GIB, _REPEATS = 8192, 2, 20


def ceilings(index: int = 0) -> dict[str, Any]:
    """Medians of 20 after warm-up: ``matrix_tflops``, random FP16 matrices of 8192 x 8192, FP32
    sums; ``copy_gb_s``, 2 GiB on the device, bytes read and written. None where they cannot be
    measured, with the reason."""
    command = [sys.executable, __file__, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"matrix_tflops": None, "copy_gb_s": None, "reason": reason}
    limits: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return limits


def _measure(index: int) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU")
    device, size = torch.device("cuda", index), _COPY_GIB << 30
    a, b, product = (torch.randn(_SIZE, _SIZE, device=device).half() for _ in range(3))
    product_ms = _median_ms(torch, lambda: torch.mm(a, b, out=product))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = _median_ms(torch, lambda: target.copy_(source))
    return {"matrix_tflops": 2 * _SIZE**3 / product_ms / 1e9, "copy_gb_s": 2 * size / copy_ms / 1e6,
            "torch": torch.__version__}  # fmt: skip


def _median_ms(torch: Any, work: Callable[[], object]) -> float:
    times = []
    for _ in range(3 + _REPEATS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return float(median(times[3:]))


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
