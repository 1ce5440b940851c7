"""What a GPU can do at most: a large FP16 matrix product, a large copy. Through PyTorch, in a
process of its own: it brings other versions of the libraries that ONNX Runtime uses."""

from __future__ import annotations

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
    done = subprocess.run([sys.executable, __file__, str(index)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"matrix_tflops": None, "copy_gb_s": None, "reason": reason}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(index: int) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU")
    device = torch.device("cuda", index)
    return {
        "matrix_tflops": 2 * _SIZE**3 / _product_ms(torch, device) / 1e9,
        "copy_gb_s": 2 * (_COPY_GIB << 30) / _copy_ms(torch, device) / 1e6,
        "torch": torch.__version__,
    }


def _product_ms(torch: Any, device: Any) -> float:
    a, b = (torch.randn(_SIZE, _SIZE, device=device).half() for _ in range(2))
    out = torch.empty_like(a)
    return _median_ms(torch, lambda: torch.mm(a, b, out=out))


def _copy_ms(torch: Any, device: Any) -> float:
    source = torch.randint(0, 255, (_COPY_GIB << 30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median_ms(torch, lambda: target.copy_(source))


def _median_ms(torch: Any, work: Callable[[], object]) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(_REPEATS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return float(median(times))


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
