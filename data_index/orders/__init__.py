"""Order rules: which instance stands at which position of an epoch. One trainer's rule a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_index.errors import UnknownLayout
from data_index.orders import file, llm360, megatron, olmo, olmo_core_composable, olmo_core_fsl
from data_index.run import Run

# A rule is a function of the number of instances, the 1-based epoch and the rule's parameters; it returns the instance
# at every position of that epoch.
Rule = Callable[[int, int, Mapping[str, Any]], np.ndarray]


def _olmo(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """The legacy OLMo trainer counts epochs from 0."""
    return olmo.global_indices(num_instances, epoch=epoch - 1, **parameters)


def _olmo_core_fsl(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    chunk = parameters.get("chunk_size", 1)
    if parameters.get("shuffle", True) is False:
        return np.arange(num_instances // chunk * chunk, dtype=np.uint32)
    return olmo_core_fsl.global_indices(num_instances, seed=parameters["seed"], epoch=epoch, chunk_size=chunk)


def _olmo_core_composable(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    sizes, per_epoch = parameters["source_sizes"], parameters["sources_per_epoch"]
    indices = olmo_core_composable.composable_indices(
        sizes,
        seed=parameters["seed"],
        epoch=epoch,
        strategy=parameters.get("strategy"),
        chunk_size=parameters["chunk_size"],
        sources_per_epoch=per_epoch,
    )
    return olmo_core_composable.run_instances(indices, sizes, epoch=epoch, sources_per_epoch=per_epoch)


def _megatron(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """All epochs are shuffled together: there is one order, that of the whole run."""
    return megatron.training_order(
        [megatron.DatasetShuffle(**dataset) for dataset in parameters["datasets"]],
        parameters["weights"],
        parameters["num_positions"],
        rows_per_loader_batch=parameters["rows_per_loader_batch"],
    )


def _amber(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """Lines of the chunks that are there, in the order of their own steps."""
    there = dict(zip(parameters["chunks"], parameters["chunk_sizes"], strict=True))
    sizes = [there.get(chunk, parameters["lines_per_chunk"]) for chunk in range(max(there) + 1)]
    order = llm360.amber_order(
        sizes,
        [start for start in parameters["process_starts"] if start <= max(there)],
        world_size=parameters["world_size"],
        rows_per_rank=parameters["rows_per_rank"],
    )
    lines = np.cumsum([0, *sizes])
    before = np.cumsum([0, *there.values()])
    parts = [
        order[(order >= lines[c]) & (order < lines[c + 1])] - lines[c] + b for c, b in zip(there, before, strict=False)
    ]
    return np.concatenate(parts).astype(np.uint64)


def _k2(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """Lines of the chunks that are there, chunks in the literal order."""
    sizes = dict(zip(parameters["chunks"], parameters["chunk_sizes"], strict=True))
    before = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    there = [chunk for chunk in llm360.k2_chunk_order() if chunk in sizes]
    return np.concatenate([np.arange(before[c], before[c] + sizes[c], dtype=np.uint64) for c in there])


def _sequential(num_instances: int, epoch: int, parameters: Mapping[str, Any]) -> np.ndarray:
    return np.arange(num_instances, dtype=np.uint32 if num_instances < 2**32 else np.uint64)


RULES: Mapping[str, Rule] = {
    "olmo": _olmo,
    "olmo_core_fsl": _olmo_core_fsl,
    "olmo_core_composable": _olmo_core_composable,
    "megatron": _megatron,
    "amber": _amber,
    "k2": _k2,
    "sequential": _sequential,
}


def epoch_order(run: Run, epoch: int, *, num_instances: int | None = None) -> np.ndarray:
    """Instances in consumption order for one epoch, unsigned integers of shape [positions].

    Args:
        num_instances: where the run's record does not hold its pieces yet.
    Raises:
        UnknownLayout: the run names a rule that this version does not know.
        CorruptFile, MissingFile: a recorded order is damaged.
    """
    if run.order.rule == "file":
        return file.epoch_order(run, epoch)
    rule = RULES.get(run.order.rule)
    if rule is None:
        raise UnknownLayout(
            f"{run.name} names the order rule {run.order.rule!r}; known rules: {', '.join(['file', *RULES])}"
        )
    return rule(run.num_instances if num_instances is None else num_instances, epoch, run.order.parameters)
