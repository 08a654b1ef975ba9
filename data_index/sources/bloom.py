"""Runs of Megatron-DeepSpeed as BLOOM used it: arguments in a YAML file, `.bin/.idx` data, step<N>/ checkpoints.

The trainer was configured by command-line arguments; megatron.yml in the run's folder holds them under their own names
(data_path as a list of weights and prefixes, seq_length, seed, split, global_batch_size, rampup_batch_size,
train_samples or train_iters), or `forensics add … --set` gives them.

Source: megatron/training.py, megatron/microbatches.py, megatron/data/ of bigscience-workshop/Megatron-DeepSpeed
@ 8387ae17
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, ForensicsError, OrderMismatch, UnknownLayout, UnsupportedRecipe
from data_index.kinds import table_of_rows
from data_index.orders.megatron import DatasetShuffle, deepspeed_shuffle
from data_index.orders.megatron_samples import normalized, split_borders, split_by_range, weighted_num_samples
from data_index.run import Checkpoint, Order, OrderTrust, Run, Segment
from data_index.sources import Imported
from data_index.sources.folder import default_name, first_existing
from data_index.sources.megatron_data import (
    IndexedDataset,
    documents_of_datasets,
    files_in_pieces,
    find_dataset,
    shuffled_pieces,
)
from data_index.sources.neox import list_checkpoints as list_step_folders
from data_index.sources.neox import merged_config
from data_index.sources.trainer_record import read_record

if TYPE_CHECKING:
    from data_index.remote.files import Data

ARGUMENTS_FILE = "megatron.yml"
SEED = 1234  # megatron/arguments.py; BLOOM's own runs say 42
DEFAULT_SPLIT = "969, 30, 1"
MAX_RAMP_STEPS = 10**7


def recognises(folder: Path) -> bool:
    return (folder / ARGUMENTS_FILE).is_file()


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """Read a Megatron-DeepSpeed run folder.

    Args:
        settings: arguments that megatron.yml does not hold.
    Raises:
        MissingFile, CorruptFile, UnsafeFile, OrderMismatch, UnsupportedRecipe, UnknownLayout
    """
    folder = folder.absolute()
    arguments = merged_config(folder, settings)
    if not arguments:
        raise UnknownLayout(f"{folder} holds no {ARGUMENTS_FILE} with the trainer's arguments; --set gives them too")
    try:
        return _import(folder, arguments, name, data)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ForensicsError):
            raise
        raise CorruptFile(f"the arguments of {folder} lack or misstate {error} (--set {error}=… gives it)") from error


def _import(folder: Path, arguments: dict[str, Any], name: str | None, data: Data) -> Imported:
    if arguments.get("skip_train_iteration_range"):
        raise UnsupportedRecipe(
            "skip_train_iteration_range moves the data on by a number of micro-batches that depends on the iteration "
            "at which the process was started, which no argument says; the order from there on is not known"
        )
    length = int(arguments["seq_length"])
    segments = segments_of(arguments)
    num_positions = segments[-1].first_position + segments[-1].num_steps * segments[-1].instances_per_batch
    weights, prefixes = blend_of(arguments["data_path"])
    datasets = [find_dataset(folder, data, prefix) for prefix in prefixes]
    samples = int(arguments.get("train_samples") or int(arguments["train_iters"]) * int(arguments["global_batch_size"]))
    shuffles = shuffles_of(arguments, datasets, weights, samples)
    order = Order(
        rule="megatron",
        parameters={
            "datasets": [asdict(shuffle) for shuffle in shuffles],
            "weights": normalized(weights),  # the blend divides by their sum once more, as the trainer does
            "num_positions": num_positions,
            "rows_per_loader_batch": int(arguments.get("micro_batch_size", 1)),
        },
    )
    run = Run(
        name=name or default_name(folder),
        layout="bloom",
        source=folder,
        sequence_length=length + 1,
        extra_label=True,
        files=files_in_pieces(datasets),
        order=order,
        segments=segments,
        trust=OrderTrust(
            level="derived",
            witness="the trainer's rule and the sizes in the .idx files",
            missing="a record of the token ids that were consumed",
        ),
        config_format="megatron_deepspeed",
        config=arguments,
        tokenizer=first_existing(folder, data, "tokenizer.json"),
    )
    record = folder / "metrics.jsonl"
    return Imported(
        run=run,
        tables=(read_record(record) if record.is_file() else {})
        | {"documents": table_of_rows("documents", documents_of_datasets(datasets), folder)},
        verbatim={path.name: path.read_bytes() for path in [folder / ARGUMENTS_FILE] if path.is_file()},
        pieces=shuffled_pieces(datasets, shuffles),
    )


def blend_of(data_path: Any) -> tuple[list[float], list[str]]:
    """Weights and prefixes of `--data-path`: one prefix, or weights and prefixes in turn.

    Raises:
        CorruptFile
    """
    parts = data_path.split() if isinstance(data_path, str) else list(data_path)
    if len(parts) == 1:
        return [1.0], [str(parts[0])]
    if len(parts) % 2:
        raise CorruptFile(f"data_path has {len(parts)} parts, which are no weights and prefixes in turn")
    return [float(weight) for weight in parts[::2]], [str(prefix) for prefix in parts[1::2]]


def shuffles_of(
    arguments: Mapping[str, Any], datasets: list[IndexedDataset], weights: list[float], num_samples: int
) -> list[DatasetShuffle]:
    wanted = [num_samples] if len(datasets) == 1 else weighted_num_samples(weights, num_samples)
    split = str(arguments.get("split", DEFAULT_SPLIT))
    shuffles: list[DatasetShuffle] = []
    for dataset, count in zip(datasets, wanted, strict=True):
        total = dataset.index.num_sequences
        shuffles.append(
            deepspeed_shuffle(
                dataset.index.sizes,
                sequence_length=int(arguments["seq_length"]),
                seed=int(arguments.get("seed", SEED)),
                num_samples=count,
                split=split_by_range(split, total) if ":" in split else split_borders(split, total)[:2],
                first_instance=sum(shuffle.num_samples for shuffle in shuffles),
            )
        )
    return shuffles


def segments_of(arguments: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Steps of one batch size after another: `rampup_batch_size` (start, increment, samples), then the full one."""
    full = int(arguments["global_batch_size"])
    ramp = arguments.get("rampup_batch_size")
    numbers = [int(n) for n in (ramp.split() if isinstance(ramp, str) else ramp or [])]
    if numbers and len(numbers) != 3:
        raise CorruptFile(f"rampup_batch_size {ramp!r} is not start, increment and samples")
    if numbers and (min(numbers) < 1 or numbers[2] // numbers[0] > MAX_RAMP_STEPS):
        raise CorruptFile(f"rampup_batch_size {str(ramp)[:80]!r} is no ramp that a run could take")
    samples, steps = arguments.get("train_samples"), arguments.get("train_iters")
    segments: list[Segment] = []
    step, consumed = 0, 0

    def take(rows: int, batches: int) -> None:
        nonlocal step, consumed
        if batches > 0:
            segments.append(
                Segment(
                    first_step=step + 1,
                    num_steps=batches,
                    epoch=1,
                    first_position=consumed,
                    instances_per_batch=rows,
                )
            )
        step, consumed = step + batches, consumed + batches * rows

    if numbers:
        start, increment, ramp_samples = numbers
        per_increment = ramp_samples / ((full - start) // increment)
        while consumed <= ramp_samples:
            rows = start + int(consumed / per_increment) * increment
            batches = 1
            while (later := consumed + batches * rows) <= ramp_samples and rows == start + int(
                later / per_increment
            ) * increment:
                batches += 1
            if samples is not None:
                batches = min(batches, (int(samples) - consumed) // rows)
            if steps is not None:
                batches = min(batches, int(steps) - step)
            if batches < 1:
                break
            take(rows, batches)
    left = (int(samples) - consumed) // full if samples is not None else int(steps or 0) - step
    take(full, left)
    if not segments:
        raise OrderMismatch(f"{samples or steps or 0} samples or iterations do not fill one batch of {full}")
    return tuple(segments)


def list_checkpoints(run: Run) -> list[Checkpoint]:
    return list_step_folders(run)
