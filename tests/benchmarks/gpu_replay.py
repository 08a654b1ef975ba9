"""Replay on a GPU: do bits repeat, how far is it from a CPU, how fast is a 1B model, what does determinism cost.

    python tests/benchmarks/gpu_replay.py --output gpu_replay.json

Needs torch, transformers, safetensors, h5py and numpy; data and models are made here. On a CPU, or with --quick, the 1B
model is replaced by a tiny one (`"scaled_down": true`): that shows that the script runs, its speeds mean nothing.

Model FLOPs per token are 6 x (parameters that multiply activations) + 12 x layers x hidden size x sequence length. The
input embedding is a lookup and is left out; the output head counts. Attention is counted in full, every token against
the whole sequence, although causal kernels skip half of it: the utilization is that much higher than one which counts
attention halved. Recomputation, the optimizer and element-wise work count as nothing.

Speeds are medians of whole steps (forward, backward, clipping, AdamW) in deterministic mode unless said otherwise.
cuBLAS keeps the workspace that deterministic mode asks for in every measurement: it is chosen once per process.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the package is not installed

from data_index.batch import Batch
from data_index.errors import NotDeterministic, OutOfMemory
from data_index.files import write_json
from replay.curves import CosineWithWarmup
from replay.determinism import arithmetic_fingerprint, choose_device, deterministic, environment
from replay.recipe import Recipe
from replay.schedule import Schedule
from replay.train_state import TrainState, build_optimizer, initial_state, moment_tensors, weight_tensors
from replay.train_step import StepResult, train_step
from replay.weights import content_hash

Numbers = dict[str, Any]
CPU = torch.device("cpu")

# Dense bf16 FLOP/s by the name the driver gives; cards with other clocks (PCIe, NVL) are not guessed.
PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is measured: a model's recipe and the shape of its steps.

    Attributes:
        rows, length: instances per step and tokens per instance.
        microbatches: the instances per micro-batch to try, from small to large.
        warmup_steps: taken before the timed ones, and not timed.
    """

    recipe: Recipe
    device: torch.device
    rows: int
    length: int
    num_steps: int
    warmup_steps: int = 0
    microbatches: Sequence[int] = ()

    def batch(self, step: int) -> Batch:
        """Random text that can be learned: each token is followed by one of 8 others."""
        vocabulary = self.recipe.model["vocab_size"]
        generator = np.random.Generator(np.random.PCG64(seed=step))
        choices = generator.integers(0, 8, (self.rows, self.length))
        token_ids = np.empty_like(choices)
        token_ids[:, 0] = generator.integers(0, vocabulary, self.rows)
        for position in range(1, self.length):
            token_ids[:, position] = (5 * token_ids[:, position - 1] + choices[:, position]) % vocabulary
        return Batch(
            step=step,
            epoch=1,
            instances=np.arange(self.rows) + (step - 1) * self.rows,
            token_ids=token_ids,
            counts_as_target=np.ones_like(token_ids, dtype=bool),
        )


def olmo2(*, length: int, hidden: int, layers: int, heads: int, vocabulary: int, **settings: Any) -> Recipe:
    """A recipe for an Olmo2 model four times as wide inside as outside; `settings` are fields of the recipe.

    No token is special: a padding token would have a row of the embedding that never learns.
    """
    model = {
        "model_type": "olmo2",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
        "max_position_embeddings": length,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    schedule = Schedule(curve=CosineWithWarmup(warmup_steps=20, max_steps=60))
    always: Numbers = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}
    return Recipe(model=model, schedule=schedule, **always, **settings)


def sample_workload(device: torch.device, num_steps: int) -> Workload:
    """The sample run's model and steps, in fp32."""
    shape = {"length": 128, "hidden": 128, "layers": 4, "heads": 4, "vocabulary": 1024}
    recipe = olmo2(**shape, learning_rate=3e-3, z_loss=1e-4)
    return Workload(recipe=recipe, device=device, rows=16, length=128, num_steps=num_steps)


def large_workload(device: torch.device, scaled_down: bool) -> Workload:
    """A model of OLMo-2-1B's shape in bf16, 8 rows of 4096 tokens a step; or a tiny stand-in."""
    shape = {"length": 4096, "hidden": 2048, "layers": 16, "heads": 16, "vocabulary": 100352}
    rows, microbatches = 8, [1, 2, 4]
    if scaled_down:
        shape = {"length": 64, "hidden": 64, "layers": 2, "heads": 2, "vocabulary": 512}
        rows, microbatches = 4, [1, 2]
    recipe = olmo2(**shape, learning_rate=4e-4, z_loss=1e-5, precision="bf16", no_decay=("model.embed_tokens.weight",))
    counts = {"num_steps": 5, "warmup_steps": 2}
    return Workload(
        recipe=recipe, device=device, rows=rows, length=shape["length"], microbatches=microbatches, **counts
    )


# --- are bits repeatable, and how far from the CPU -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A finished run: what each step said, and the states' hash. `weights` are on the CPU."""

    results: tuple[StepResult, ...]
    states_hash: str
    weights: Mapping[str, torch.Tensor]


def states_hash(state: TrainState) -> str:
    return content_hash(weight_tensors(state) | moment_tensors(state))


def train_sample(work: Workload) -> Trained:
    """Train from weights that are initialized on the CPU, so that every device starts from the same bits."""
    with deterministic(num_threads=1):
        model = initial_state(work.recipe, seed=0, device=CPU).model.to(work.device)
        optimizer = build_optimizer(model, work.recipe, work.device)
        state = TrainState(model=model, optimizer=optimizer, step=0, tokens=0, device=work.device)
        results = tuple(train_step(state, work.batch(step), work.recipe) for step in range(1, work.num_steps + 1))
        weights = {name: tensor.cpu() for name, tensor in weight_tensors(state).items()}
        return Trained(results=results, states_hash=states_hash(state), weights=weights)


def sample_twice(work: Workload) -> Numbers:
    """The same steps twice on one device: equal bit for bit?"""
    first, second = train_sample(work), train_sample(work)
    return {
        "num_steps": work.num_steps,
        "states_equal": first.states_hash == second.states_hash,
        "losses_equal": [r.loss for r in first.results] == [r.loss for r in second.results],
        "grad_norms_equal": [r.grad_norm for r in first.results] == [r.grad_norm for r in second.results],
        "states_hashes": [first.states_hash, second.states_hash],
        "losses": [r.loss for r in first.results],
    }


def sample_against_cpu(work: Workload) -> Numbers:
    """The same steps on the device and on one CPU thread."""
    ours, reference = train_sample(work), train_sample(replace(work, device=CPU))
    gaps = [abs(a.loss - b.loss) / abs(b.loss) for a, b in zip(ours.results, reference.results, strict=True)]
    difference = {name: ours.weights[name].double() - tensor for name, tensor in reference.weights.items()}
    return {
        "num_steps": work.num_steps,
        "compared_with_itself": work.device.type == "cpu",
        "relative_loss_differences": gaps,
        "largest_relative_loss_difference": max(gaps),
        "at_step": 1 + gaps.index(max(gaps)),
        "relative_weight_distance": norm(difference) / norm(reference.weights),
        "losses_cpu": [r.loss for r in reference.results],
    }


def norm(weights: Mapping[str, torch.Tensor]) -> float:
    """L2 norm over all weights, in float64."""
    return math.sqrt(sum(tensor.double().pow(2).sum().item() for tensor in weights.values()))


def fingerprints(work: Workload) -> Numbers:
    """The arithmetic fingerprint of the device, taken twice, and of the CPU."""

    def fingerprint(device: torch.device) -> str:
        with deterministic(num_threads=1):
            return arithmetic_fingerprint(work.recipe.model, work.rows, work.length, device)

    first, second = fingerprint(work.device), fingerprint(work.device)
    return {"device": first, "repeatable": first == second, "cpu": fingerprint(CPU)}


# --- how fast, and what determinism costs ----------------------------------------------------------------------------


class StepTimer:
    """An observer that splits a step's time into gradients (forward, backward) and update (clipping, AdamW)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []

    def before_step(self, state: TrainState, batch: Batch) -> None:
        self._times = [self.now()]

    def before_update(self, state: TrainState, batch: Batch) -> None:
        self._times.append(self.now())

    def after_step(self, state: TrainState, batch: Batch) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        began, gradients_ready = self._times
        return {"gradient_seconds": gradients_ready - began, "update_seconds": self.now() - gradients_ready}, {}

    def now(self) -> float:
        """Seconds on a clock, once the device has done all that it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def throughput(work: Workload) -> Numbers:
    """Speed and memory for each micro-batch size; one that does not fit carries its error."""
    return {
        "tokens_per_step": work.rows * work.length,
        "flops_per_token": flops_per_token(work),
        "peak_flops": peak_flops(work.device),
        "measurements": [measure(work, instances) for instances in work.microbatches],
    }


def measure(work: Workload, instances_per_microbatch: int, *, enforce: bool = True, fill: bool = False) -> Numbers:
    """Speed and memory of the workload; that it does not fit, or has no such kernels, is an answer and no failure.

    Args:
        enforce: only deterministic kernels.
        fill: overwrite fresh memory with NaN, as torch does in deterministic mode by default and replays do not.
    """
    work = in_microbatches(work, instances_per_microbatch)
    label: Numbers = {"instances_per_microbatch": instances_per_microbatch, "deterministic": enforce, "fill": fill}
    report(f"{instances_per_microbatch} rows at once, deterministic={enforce}, fill={fill}")
    try:
        with deterministic(num_threads=1, enforce=enforce), filled_memory(fill):
            numbers = timed_steps(work)
    except (OutOfMemory, NotDeterministic) as error:
        numbers = {"error": str(error)}
    free_memory(work.device)
    return label | numbers


def timed_steps(work: Workload) -> Numbers:
    """Median seconds of steps after warm-up, and the memory they took. The state is built straight on the device."""
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    state = initial_state(work.recipe, seed=0, device=work.device)
    timer = StepTimer(work.device)
    seconds, results = [], []
    for step in range(1, work.warmup_steps + work.num_steps + 1):
        batch = work.batch(step)
        began = timer.now()
        result = train_step(state, batch, work.recipe, [timer])
        if step > work.warmup_steps:
            seconds.append(timer.now() - began)
            results.append(result)
    tokens_per_second = work.rows * work.length / statistics.median(seconds)
    peak = peak_flops(work.device)
    return {
        "tokens_per_second": tokens_per_second,
        "model_flops_utilization": None if peak is None else tokens_per_second * flops_per_token(work) / peak,
        "step_seconds": seconds,
        "gradient_seconds": statistics.median(r.scalars["gradient_seconds"] for r in results),
        "update_seconds": statistics.median(r.scalars["update_seconds"] for r in results),
        "last_loss": results[-1].loss,
        "parameters": sum(weight.numel() for weight in weight_tensors(state).values()),
    } | memory(work.device)


def cost_of_determinism(work: Workload, instances_per_microbatch: int) -> Numbers:
    """The same steps with deterministic kernels, with those but fresh memory left as it is, and without."""
    modes = [(True, True), (True, False), (False, False)]
    return {
        "measurements": [measure(work, instances_per_microbatch, enforce=enforce, fill=fill) for enforce, fill in modes]
    }


def large_twice(work: Workload, instances_per_microbatch: int) -> Numbers:
    """Two deterministic steps from equal states, twice: equal bit for bit?"""
    work = in_microbatches(work, instances_per_microbatch)
    first, second = hashes_of_two_steps(work), hashes_of_two_steps(work)
    return {
        "instances_per_microbatch": instances_per_microbatch,
        "starts_equal": first["start"] == second["start"],
        "states_equal": first["end"] == second["end"],
        "states_hashes": [first["end"], second["end"]],
        "hash_seconds": first["hash_seconds"],
    }


def in_microbatches(work: Workload, instances: int) -> Workload:
    return replace(work, recipe=replace(work.recipe, instances_per_microbatch=instances))


def hashes_of_two_steps(work: Workload) -> Numbers:
    """Hash of the initial weights, and of weights and moments after two deterministic steps."""
    with deterministic(num_threads=1):
        state = initial_state(work.recipe, seed=0, device=work.device)
        start = content_hash(weight_tensors(state))
        for step in (1, 2):
            train_step(state, work.batch(step), work.recipe)
        began = time.perf_counter()
        end = states_hash(state)
    hash_seconds = time.perf_counter() - began
    del state
    free_memory(work.device)
    return {"start": start, "end": end, "hash_seconds": hash_seconds}


@contextmanager
def filled_memory(fill: bool) -> Iterator[None]:
    """Whether deterministic mode overwrites fresh memory, which makes reading it by mistake repeatable."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before


def flops_per_token(work: Workload) -> float:
    """Model FLOPs of forward and backward per token, attention in full; the formula is at the top of this file."""
    model = work.recipe.model
    hidden, layers = model["hidden_size"], model["num_hidden_layers"]
    block = 4 * hidden**2 + 3 * hidden * model["intermediate_size"]
    return 6.0 * (layers * block + model["vocab_size"] * hidden) + 12.0 * layers * hidden * work.length


def peak_flops(device: torch.device) -> float | None:
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def memory(device: torch.device) -> Numbers:
    """Bytes on the device since the last reset; None on a CPU. What is resident is there between steps."""
    cuda = device.type == "cuda"
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else None,
        "resident_bytes": torch.cuda.memory_allocated(device) if cuda else None,
    }


def free_memory(device: torch.device) -> None:
    """Give back what no name holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- the report ------------------------------------------------------------------------------------------------------


def fastest_microbatch(section: Numbers) -> int:
    """The micro-batch size with the most tokens per second; 1 where none was measured."""
    measured = [m for m in section.get("measurements", []) if "tokens_per_second" in m]
    best = max(measured, key=lambda m: m["tokens_per_second"], default={"instances_per_microbatch": 1})
    return int(best["instances_per_microbatch"])


def attempt(section: Callable[[], Numbers], device: torch.device) -> Numbers:
    """What a section measured, or the text of its error; either way with its seconds."""
    began = time.perf_counter()
    try:
        numbers = section()
    except Exception as error:  # whatever it is, the other sections are worth having
        traceback.print_exc()
        numbers = {"error": f"{type(error).__name__}: {error}"}
    free_memory(device)
    return numbers | {"seconds": time.perf_counter() - began}


def run(device: torch.device, scaled_down: bool, output: Path | None) -> Numbers:
    """Measure everything; the file is written anew after each section, so that a time limit loses little."""
    found: Numbers = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "scaled_down": scaled_down}
    found |= {"device": str(device), "attention_counted": "full"}
    found["environment"] = environment() | {"cuda": torch.version.cuda, "num_cpus": os.cpu_count()}
    sample = sample_workload(device, num_steps=10 if scaled_down else 60)
    large = large_workload(device, scaled_down)
    sections: Mapping[str, Callable[[], Numbers]] = {
        "fingerprint": lambda: fingerprints(sample),
        "sample_twice": lambda: sample_twice(sample),
        "sample_against_cpu": lambda: sample_against_cpu(sample),
        "throughput": lambda: throughput(large),
        "cost_of_determinism": lambda: cost_of_determinism(large, fastest_microbatch(found["throughput"])),
        "large_twice": lambda: large_twice(large, fastest_microbatch(found["throughput"])),
    }
    for name, section in sections.items():
        report(name)
        found[name] = attempt(section, device)
        if output:
            write_json(output, found)
    return found


def report(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)


# The printed columns of a measurement, and its keys.
COLUMNS: Mapping[str, str] = {
    "rows at once": "instances_per_microbatch",
    "deterministic": "deterministic",
    "fill": "fill",
    "tokens/s": "tokens_per_second",
    "MFU": "model_flops_utilization",
    "gradient s": "gradient_seconds",
    "update s": "update_seconds",
    "peak GiB": "peak_allocated_bytes",
    "reserved GiB": "peak_reserved_bytes",
}


def table(found: Numbers) -> Iterator[str]:
    """Lines for people; everything in them, and more, is in the JSON."""
    versions = found["environment"]
    where = versions["gpu"] if found["device"].startswith("cuda") else f"CPU, {versions['cpu_capability']}"
    yield f"{where}; torch {versions['torch']}, transformers {versions['transformers']}; {found['date']}"
    if found["scaled_down"]:
        yield "Scaled down: tiny models. Speeds mean nothing."
    for name, section in found.items():
        if name == "environment" or not isinstance(section, dict):
            continue
        yield f"\n{name}"
        yield from (f"  {key:36}{text(value)}" for key, value in section.items() if not isinstance(value, list | dict))
        if measurements := section.get("measurements"):
            yield "".join(f"{heading:>14}" for heading in COLUMNS)
            yield from map(measurement_line, measurements)


def measurement_line(measurement: Numbers) -> str:
    """One row under COLUMNS; bytes in GiB."""
    scaled = {k: v / 2**30 if v and k.endswith("bytes") else v for k, v in measurement.items()}
    cells = [text(scaled[key]) for key in COLUMNS.values() if key in scaled]
    return "".join(f"{cell:>14}" for cell in cells) + f"  {measurement.get('error', '')}".rstrip()


def text(value: object) -> str:
    return "-" if value is None else f"{value:,.5g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Exit 0 when every section gave an answer, 1 when one failed."""
    parser = argparse.ArgumentParser(description="Measure replay on this machine's GPU.")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write every number there")
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps, to see that it runs")
    options = parser.parse_args()
    device = choose_device(options.device)
    found = run(device, scaled_down=options.quick or device.type == "cpu", output=options.output)
    print("\n".join(table(found)))
    return int(any("error" in section for section in found.values() if isinstance(section, dict)))


if __name__ == "__main__":
    sys.exit(main())
