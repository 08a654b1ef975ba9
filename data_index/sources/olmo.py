"""Runs of the legacy OLMo trainer: step<N>-unsharded/ or step<N>/, each with its config.yaml; headerless token files.

Read here: what the order needs (files, seed, batch sizes, where the data loader stood at each checkpoint) and where the
checkpoints are. The rest of config.yaml is kept verbatim and interpreted by replay alone.

Source: Python package ai2-olmo 0.6.0 (olmo/train.py, olmo/data/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_index.durations import Progress, max_steps, olmo_duration
from data_index.errors import (
    CorruptFile,
    ForensicsError,
    MissingFile,
    OrderMismatch,
    UnknownLayout,
    UnsupportedRecipe,
)
from data_index.olmo_checkpoint import layout_of, read_config, read_trainer_state, states_of
from data_index.run import Checkpoint, Masking, Order, Run, Segment, TokenFile
from data_index.sources import Imported
from data_index.sources.folder import (
    default_name,
    find_file,
    find_on_disk,
    first_existing,
    place_files,
    read_file,
    refuse_settings,
    step_folders,
    token_dtype,
)
from data_index.sources.olmo_position import Position, Stretch, join_stretches
from data_index.sources.olmo_witness import len_of_order, per_rank_indices, prove_order
from data_index.sources.trainer_record import read_record

if TYPE_CHECKING:
    from data_index.remote.files import Data


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.yaml").is_file() and layout_of(path) in ("olmo", "olmo_sharded")


def _checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Checkpoints of a run by step; of a single checkpoint whatever it is called, by what its trainer state says."""
    found = step_folders(folder, _is_checkpoint)
    if not found and _is_checkpoint(folder) and "trainer" in states_of(folder):
        return {read_trainer_state(folder)["global_step"]: folder}
    return found


def recognises(folder: Path) -> bool:
    return _is_checkpoint(folder) or bool(step_folders(folder, _is_checkpoint))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Saved:
    """A checkpoint's own config, loader position and tokens seen; None where its trainer state was not published."""

    folder: Path
    config: Mapping[str, Any]
    position: Position | None
    tokens: int | None


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """Read a run folder of the legacy OLMo trainer.

    Args:
        data: where the token files are; default: the paths as written, then below the folder and its parents.
    Raises:
        MissingFile, CorruptFile, UnsafeFile, OrderMismatch, UnsupportedRecipe, UnknownLayout
    """
    refuse_settings(settings, "config.yaml")
    folder = folder.absolute()
    # Of checkpoints on servers, what describes them may be all that is here.
    folders = _checkpoint_folders(folder) or step_folders(folder, lambda path: (path / "config.yaml").is_file())
    if not folders:
        raise UnknownLayout(f"{folder} holds no step<N>-unsharded/config.yaml with weights, so it is no OLMo run")
    last = folders[max(folders)] / "config.yaml"
    try:
        return _import(folder, folders, name, data)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ForensicsError):
            raise
        raise CorruptFile(f"{last} lacks or misstates {error!r}") from error


def _import(folder: Path, folders: Mapping[int, Path], name: str | None, data: Data) -> Imported:
    saved = {step: _saved(step, path) for step, path in folders.items()}
    last = saved[max(saved)]
    config, settings = last.config, last.config["data"]
    length = int(config["model"]["max_sequence_length"])
    files = _token_files(folder, settings, data, length)
    world_size = next((s.position.world_size for s in saved.values() if s.position), 1)
    order = Order(
        rule="olmo",
        parameters={
            "seed": int(config["seed"] if settings.get("seed") is None else settings["seed"]),
            "drop_last": bool(settings.get("drop_last", False)),
            "world_size": world_size,
        },
    )
    num_positions = len_of_order(sum(file.num_instances for file in files), order)
    segments, notes = _segments(saved, num_positions)
    known = sum(checkpoint.position is not None for checkpoint in saved.values())
    record = first_existing(folder, None, "metrics.jsonl")
    tables = dict(read_record(record)) if record is not None else {}
    records: tuple[Any, ...] = ()
    if (consumed := per_rank_indices(folder, folders)) is not None:
        records = (tables.pop("consumed"),) if "consumed" in tables else ()
        tables["consumed"] = consumed
    config_bytes = read_file(last.folder / "config.yaml")
    run = Run(
        name=name or default_name(folder),
        layout="olmo",
        source=folder,
        sequence_length=length,
        files=files,
        order=order,
        segments=segments,
        trust=prove_order(folder, folders, known, order, segments, sum(f.num_instances for f in files), notes),
        config_format="olmo",
        config=config,
        masking=_masking(config),
        pad_token_id=config["model"].get("pad_token_id"),
        tokenizer=first_existing(folder, data, str((config.get("tokenizer") or {}).get("identifier") or "")),
        eos_token_id=config["model"].get("eos_token_id"),
        environment={"world_size": world_size, "instances_per_epoch": num_positions},
        facts={
            "config": str(last.folder / "config.yaml"),
            "config_sha256": hashlib.sha256(config_bytes).hexdigest(),
        }
        | ({"order_notes": "; ".join(notes)} if notes else {}),
    )
    return Imported(run=run, tables=tables, verbatim={"config.yaml": config_bytes}, records=records)


def _saved(step: int, path: Path) -> _Saved:
    config = read_config(path) or {}
    if "trainer" not in states_of(path) and not (path / "train.pt").is_file():
        return _Saved(folder=path, config=config, position=None, tokens=None)
    state = read_trainer_state(path)
    if state["global_step"] != step:
        raise OrderMismatch(
            f"{path} is named after step {step}; its trainer state says step {state['global_step']}: the folder was "
            "renamed or holds another checkpoint"
        )
    position = Position(
        epoch=state["epoch"] + 1,
        examples=state["global_train_examples_seen_this_epoch"],
        world_size=int(state.get("world_size") or 1),
    )
    return _Saved(folder=path, config=config, position=position, tokens=state["global_train_tokens_seen"])


def _token_files(folder: Path, settings: Mapping[str, Any], data: Data, length: int) -> tuple[TokenFile, ...]:
    if settings.get("custom_dataset"):
        raise UnsupportedRecipe("config.yaml: data.custom_dataset has an order that this version does not compute")
    names = [str(path) for path in settings.get("paths") or []]
    datasets = settings.get("datasets") or {}
    for label in sorted(datasets):
        names += [str(path) for path in datasets[label]]
    if not names:
        raise MissingFile(f"the config of {folder} lists no token files (data.paths, data.datasets)")
    dtype = token_dtype(settings.get("memmap_dtype") or settings.get("effective_memmap_dtype") or "uint16")
    masks = settings.get("label_mask_paths") or []
    if masks and len(masks) != len(names):
        raise CorruptFile(f"the config of {folder} names {len(masks)} label masks for {len(names)} token files")
    return place_files(
        names,
        [find_file(folder, data, name, "token file") for name in names],
        dtype.name,
        lambda num_bytes: num_bytes // (dtype.itemsize * length),
        label_masks={n: find_on_disk(folder, data, str(mask), "label mask") for n, mask in enumerate(masks)},
    )


def _masking(config: Mapping[str, Any]) -> Masking:
    chosen = config["data"].get("instance_filter")
    repetition = None
    if chosen:
        repetition = (
            int(chosen.get("repetition_max_period", 13)),
            int(chosen.get("repetition_min_period", 1)),
            int(chosen.get("repetition_max_count", 32)),
        )
    hides_padding = bool(config["data"].get("generate_attention_mask"))
    return Masking(
        repetition=repetition, hidden_token_id=int(config["model"]["pad_token_id"]) if hides_padding else None
    )


# --- which step read what --------------------------------------------------------------------------------------------


def _segments(saved: Mapping[int, _Saved], num_positions: int) -> tuple[tuple[Segment, ...], list[str]]:
    """Segments from the loader's position at each checkpoint, and what could not be explained by the configs."""
    stretches = []
    for step, checkpoint in saved.items():
        config = checkpoint.config
        stretches.append(
            Stretch(
                last_step=step,
                position=checkpoint.position,
                instances_per_batch=int(config["global_train_batch_size"]),
                first_epoch=int(config.get("epoch") or 0) + 1,
                told_epoch=None if config.get("epoch") is None else int(config["epoch"]) + 1,
                restarted_from=_restarted_from(config),
                skipped_batches=int(config.get("fast_forward_batches") or 0),
            )
        )
    last = stretches[-1]
    batches_per_epoch = num_positions // last.instances_per_batch
    if not batches_per_epoch:
        raise OrderMismatch(
            f"the {num_positions:,} instances of an epoch do not fill one batch of {last.instances_per_batch:,}: token "
            "files are missing, or the config is another run's"
        )
    final = _last_step(saved[last.last_step], last, batches_per_epoch)
    return join_stretches(stretches, num_positions, final)


def _restarted_from(config: Mapping[str, Any]) -> int | None:
    """The step of `load_path`, where the trainer went on with the data loader's position of that checkpoint."""
    tail = Path(str(config.get("load_path") or "")).name.removesuffix("-unsharded").removeprefix("step")
    return int(tail) if tail.isdigit() and config.get("restore_dataloader", True) else None


def _last_step(saved: _Saved, stretch: Stretch, batches_per_epoch: int) -> int:
    """Steps that the trainer was told to take: up to `stop_at`, else ten past the duration, within whole epochs."""
    config = saved.config
    tokens_per_step = stretch.instances_per_batch * int(config["model"]["max_sequence_length"])
    seen = stretch.last_step * tokens_per_step if saved.tokens is None else saved.tokens
    progress = Progress(
        tokens_per_step=tokens_per_step,
        step=stretch.last_step,
        tokens=seen,
        batches=stretch.last_step,
        batches_per_epoch=batches_per_epoch,
    )
    steps = max_steps(olmo_duration(config["max_duration"]), progress)
    epochs = -(-steps // batches_per_epoch)
    stop = int(config["stop_at"]) if config.get("stop_at") is not None else steps + 10
    if stretch.last_step == 0 and config.get("stop_after") is not None:  # later ones hold it in stop_at
        stop = min(stop, int(config["stop_after"]))
    return max(min(stop, epochs * batches_per_epoch), stretch.last_step, 1)


def list_checkpoints(run: Run) -> list[Checkpoint]:
    return [
        Checkpoint(
            run=run.name,
            step=step,
            tokens=run.tokens_after(step),
            location=path,
            layout=layout_of(path) or "olmo",
            states=states_of(path),
        )
        for step, path in _checkpoint_folders(run.source).items()
    ]
