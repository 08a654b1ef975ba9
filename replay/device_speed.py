"""How fast a device multiplies: what estimates of time stand on."""

from __future__ import annotations

import time

import torch


def matmul_flops(width: int, *, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a matmul of 1,024 rows, measured here and now."""
    a = torch.ones(1024, width, device=device, dtype=dtype)
    b = torch.ones(width, width, device=device, dtype=dtype)
    (a @ b).sum().item()
    began = time.perf_counter()
    for _ in range(20):
        c = a @ b
    c.sum().item()
    return 20 * 2 * 1024 * width * width / (time.perf_counter() - began)
