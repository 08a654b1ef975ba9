"""What makes bits equal: threads, deterministic kernels, and a fingerprint of the arithmetic at hand."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.deterministic

from data_index.errors import NotDeterministic, OutOfMemory

# The module turns attribute access into settings, which type checkers do not see.
deterministic_settings: Any = torch.utils.deterministic


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one.

    Raises:
        NotDeterministic: cuda was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NotDeterministic(
            "--device cuda: this machine has no GPU that torch can use; --device cpu works everywhere"
        )
    if name.startswith("cuda"):
        # cuBLAS reads it once, at its first call in the process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device(name)


@contextmanager
def deterministic(num_threads: int, *, enforce: bool = True) -> Iterator[None]:
    """Set threads and deterministic kernels for the duration; errors of the device become ours.

    Raises:
        NotDeterministic: an operation has no deterministic kernel.
        OutOfMemory: the device cannot hold the step.
    """
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fill = deterministic_settings.fill_uninitialized_memory
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(enforce)
    # Filling fresh memory with NaN guards against reading it unwritten; it costs time and changes no result.
    deterministic_settings.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the GPU ran out of memory ({str(error).splitlines()[0]}): take fewer rows at once with --set "
            "recipe.instances_per_microbatch=1 (the sum is the same up to rounding), or a larger GPU"
        ) from error
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise NotDeterministic(
                f"{str(error).splitlines()[0]} To go on without bit-equality, add --no-deterministic"
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before)
        deterministic_settings.fill_uninitialized_memory = fill
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def environment() -> dict[str, Any]:
    """What a result depends on besides its inputs; stored beside it."""
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def arithmetic_fingerprint(
    model: Mapping[str, Any],
    rows: int,
    length: int,
    device: torch.device | None = None,
    *,
    precision: str = "fp32",
) -> str:
    """sha256 over a fixed battery of operations at a model's shapes.

    Matmuls, attention forward and backward, RMSNorm, log-softmax, elementary functions and one AdamW step, fp32 (and
    matmul and attention in bf16 where the recipe computes so); inputs from a portable generator. Kernels chosen inside
    MKL, oneDNN and torch change it, where version numbers and CPU flags do not tell. Call it within `deterministic`.

    Args:
        model: a transformers config as a dict.
        rows, length: instances per micro-batch and tokens per instance.
    """
    device = device or torch.device("cpu")
    hidden, inner, heads = model["hidden_size"], model["intermediate_size"], model["num_attention_heads"]
    rows, length = min(rows, 8), min(length, 512)
    generator = np.random.Generator(np.random.PCG64(seed=20))

    def normal(*shape: int) -> torch.Tensor:
        values = generator.standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(values).to(device)

    digest = hashlib.sha256()

    def record(*tensors: torch.Tensor) -> None:
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())

    x = normal(rows * length, hidden)
    record(x @ normal(hidden, hidden), x @ normal(hidden, inner), x @ normal(hidden, min(model["vocab_size"], 8192)))
    heads_shape = rows, heads, length, hidden // heads
    dtypes = [torch.float32, torch.bfloat16] if precision == "bf16" else [torch.float32]
    for dtype in dtypes:
        q, k, v = (normal(*heads_shape).to(dtype).requires_grad_() for _ in range(3))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended.backward(normal(*heads_shape).to(dtype))
        record(attended.float(), *(t.grad.float() for t in (q, k, v) if t.grad is not None))
        record((x.to(dtype) @ normal(hidden, hidden).to(dtype)).float())
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    record(normed, F.log_softmax(normed, dim=-1), F.silu(x), normed.cos())
    # Vector-math libraries round these differently from one processor maker to another.
    record(x.abs().sqrt(), x.exp(), x.sin(), x.abs().log())
    # From zero, so that every bit of the update shows.
    weight = torch.nn.Parameter(torch.zeros(hidden, hidden, device=device))
    weight.grad = normal(hidden, hidden)
    torch.optim.AdamW([weight], lr=1e-3, fused=True if device.type == "cuda" else None).step()
    record(weight)
    return digest.hexdigest()
