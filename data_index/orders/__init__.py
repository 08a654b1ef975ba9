"""Order rules: which instance stands at which position of an epoch. One trainer's rule a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, UnknownLayout
from data_index.files import PLAUSIBLE_RATIO
from data_index.orders import file, llm360, megatron, olmo, olmo_core_composable, olmo_core_fsl
from data_index.run import Run

# What parameters may count whatever the instances are: small data are read again and again.
PLAUSIBLE_COUNT = 2**24

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
    count = run.num_instances if num_instances is None else num_instances
    try:
        _require_plausible(run.order.rule, count, run.order.parameters)
        return rule(count, epoch, run.order.parameters)
    except ForensicsError:
        raise
    except (*UNFORESEEN, MemoryError) as error:
        raise CorruptFile(
            f"{run.name} names an order by the rule {run.order.rule} that cannot be: {error!r}"
        ) from error


def _require_plausible(rule: str, num_instances: int, parameters: Mapping[str, Any]) -> None:
    """Rules allocate what their parameters say: refuse what the run's instances do not account for.

    Raises:
        ValueError
    """
    stated = {"olmo_core_composable": "source_sizes", "amber": "chunk_sizes", "k2": "chunk_sizes"}.get(rule)
    if stated is not None and (min(parameters[stated]) < 0 or sum(parameters[stated]) != num_instances):
        raise ValueError(f"{stated} do not make up the {num_instances:,} instances of the run")
    counts = [int(parameters.get(name, 1)) for name in ("world_size", "rows_per_rank", "chunk_size", "num_positions")]
    counts += [int(parameters.get("lines_per_chunk") or 0)]
    if max(parameters.get("chunks", [0])) >= llm360.K2_CHUNKS:
        raise ValueError(f"chunk {max(parameters['chunks'])} of {llm360.K2_CHUNKS}")
    for dataset in parameters.get("datasets", []) if rule == "megatron" else []:
        shuffle = megatron.DatasetShuffle(**dataset)
        counts += [shuffle.num_samples, shuffle.num_epochs * shuffle.num_sequences]
    if min(counts) < 0 or max(counts) > max(PLAUSIBLE_COUNT, PLAUSIBLE_RATIO * num_instances):
        raise ValueError(f"the order rule {rule} counts up to {max(counts):,} for {num_instances:,} instances")
