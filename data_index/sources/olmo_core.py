"""Runs of the OLMo-core trainer: step<N>/{config.json, data_paths.txt, train/, model_and_optim/}.

Read here: what the order needs (dataset, loader, batch size, duration) and where the checkpoints are. The rest of
config.json is kept verbatim and interpreted by replay/recipe.py alone.

Source: Python package ai2-olmo-core 3.0.0 (data/numpy_dataset.py, data/data_loader.py, train/checkpoint.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import (
    CorruptFile,
    ForensicsError,
    MissingFile,
    OrderMismatch,
    UnknownLayout,
    UnsupportedRecipe,
)
from data_index.orders.olmo_core_fsl import global_indices
from data_index.pickles import read_torch_archive
from data_index.run import Checkpoint, Order, OrderTrust, Run, Segment, TokenFile, place_files
from data_index.sources import Imported
from data_index.sources.trainer_record import read_record

_STEP = re.compile(r"step(\d+)$")


def _checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Complete checkpoints at or below `folder`, by step."""
    candidates = [folder, *folder.glob("step*"), *folder.glob("*/step*")]
    found = {
        int(match[1]): path
        for path in candidates
        if (match := _STEP.match(path.name)) and (path / "model_and_optim" / ".metadata").is_file()
    }
    return dict(sorted(found.items()))


def recognises(folder: Path) -> bool:
    return any((path / "config.json").is_file() for path in _checkpoint_folders(folder).values())


def read(folder: Path, name: str | None, data: Path | None) -> Imported:
    """Read an OLMo-core run folder.

    Args:
        data: where the token files are; default: the paths as written, then below the folder and its parents.
    Raises:
        MissingFile, CorruptFile, OrderMismatch, UnsupportedRecipe
    """
    folder = folder.absolute()
    folders = _checkpoint_folders(folder)
    if not folders:
        raise UnknownLayout(f"{folder} holds no step<N>/model_and_optim/.metadata, so it is no OLMo-core run")
    last = folders[max(folders)]
    config_bytes = _read_bytes(last / "config.json")
    config = _parse(config_bytes, last / "config.json")
    try:
        return _import(folder, folders, config, config_bytes, name, data)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError, StopIteration) as error:
        if isinstance(error, ForensicsError):
            raise
        raise CorruptFile(f"{last / 'config.json'} lacks or misstates {error!r}") from error


def _import(
    folder: Path,
    folders: Mapping[int, Path],
    config: Mapping[str, Any],
    config_bytes: bytes,
    name: str | None,
    data: Path | None,
) -> Imported:
    last = folders[max(folders)]
    dataset, loader = config.get("dataset") or {}, config.get("data_loader") or {}
    _require_fsl(dataset, loader)

    length = int(dataset["sequence_length"])
    longest = int(dataset.get("max_target_sequence_length") or length)
    if length < 1 or longest % length:
        raise CorruptFile(f"config.json: sequence_length {length} does not divide max_target_sequence_length {longest}")
    chunk_size = longest // length
    files = _token_files(folder, last, dataset, data, length, chunk_size)
    num_instances = sum(file.num_instances for file in files)
    seed, batch_tokens = int(loader["seed"]), int(loader["global_batch_size"])
    order = Order(rule="olmo_core_fsl", parameters={"seed": seed, "chunk_size": chunk_size})
    segments = _segments(config, num_instances // chunk_size * chunk_size, batch_tokens // length)
    run = Run(
        name=name or _default_name(folder),
        layout="olmo_core",
        source=folder,
        sequence_length=length,
        files=files,
        order=order,
        segments=segments,
        trust=_prove_order(folder, folders, dataset, files, num_instances, segments, seed, chunk_size),
        config_format="olmo_core",
        config=config,
        tokenizer=_first_existing(folder, data, "tokenizer.json"),
        eos_token_id=(dataset.get("tokenizer") or {}).get("eos_token_id"),
        facts={"config": str(last / "config.json"), "config_sha256": hashlib.sha256(config_bytes).hexdigest()}
        | _unknown_masks(dataset),
    )
    record = folder / "metrics.jsonl"
    return Imported(
        run=run, tables=read_record(record) if record.is_file() else {}, verbatim={"config.json": config_bytes}
    )


def _default_name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-.") or "run"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is not there") from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"{path} is not a config")
    return config


def _require_fsl(dataset: Mapping[str, Any], loader: Mapping[str, Any]) -> None:
    """Refuse what would give another order than the plain fixed-sequence-length one.

    Raises:
        UnsupportedRecipe
    """
    kind = str(dataset.get("_CLASS_", "")).rsplit(".", 1)[-1] or str(dataset.get("type", "unnamed"))
    if kind not in ("NumpyFSLDatasetConfig", "fsl"):
        raise UnsupportedRecipe(f"config.json: dataset {kind} has an order that this version does not compute")
    for field in ("source_mixture_config", "mix"):
        if dataset.get(field):
            raise UnsupportedRecipe(f"config.json: dataset.{field} is not read by this version; paths are")
    if loader.get("shuffle") is False:
        raise UnsupportedRecipe("config.json: data_loader.shuffle = false is not read by this version")


def _unknown_masks(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Say which setting hides tokens from the loss in a way that this version does not compute."""
    for name in ("instance_filter_config", "label_mask_paths"):
        if dataset.get(name):
            return {"masks_unknown": f"dataset.{name} hides tokens from the loss; which ones is not computed"}
    return {}


def _token_files(
    folder: Path, checkpoint: Path, dataset: Mapping[str, Any], data: Path | None, length: int, chunk_size: int
) -> tuple[TokenFile, ...]:
    listing = checkpoint / "data_paths.txt"
    # The listing is the order after any permutation of sources; the config's paths are before it.
    names = listing.read_text().splitlines() if listing.is_file() else list(dataset.get("paths") or [])
    if not names:
        raise MissingFile(f"{checkpoint} lists no token files (data_paths.txt, dataset.paths)")
    dtype = np.dtype(str(dataset.get("dtype") or _smallest_dtype(dataset)))
    found = []
    for name in names:
        path = _first_existing(folder, data, name)
        if path is None:
            raise MissingFile(
                f"the token file {name} of {folder} was found neither as written nor below "
                f"{data or f'{folder} and its parents'}: say where the data are with --data DIR"
            )
        found.append((name, path, path.stat().st_size, None))
    chunk_bytes = dtype.itemsize * length * chunk_size
    return place_files(found, dtype.name, lambda num_bytes: num_bytes // chunk_bytes * chunk_size)


def _smallest_dtype(dataset: Mapping[str, Any]) -> str:
    vocab_size = int((dataset.get("tokenizer") or {}).get("vocab_size", 2**32))
    return next(name for name in ("uint8", "uint16", "uint32", "uint64") if vocab_size - 1 <= np.iinfo(name).max)


def _first_existing(folder: Path, data: Path | None, name: str) -> Path | None:
    """Look for a file by its whole path, then by ever shorter tails of it."""
    tails = [Path(*Path(name).parts[start:]) for start in range(len(Path(name).parts))]
    bases = [data] if data is not None else [folder, *folder.parents[:2], *(p / "data" for p in folder.parents[:2])]
    for candidate in ([Path(name)] if data is None else []) + [base / tail for base in bases for tail in tails]:
        if candidate.is_file():
            return candidate.absolute()
    return None


def _segments(config: Mapping[str, Any], usable_instances: int, instances_per_batch: int) -> tuple[Segment, ...]:
    """One segment an epoch; the remainder of an epoch that fills no batch is dropped."""
    batches = usable_instances // instances_per_batch
    if batches == 0:
        raise OrderMismatch(f"{usable_instances} instances do not fill one batch of {instances_per_batch}")
    last_step = _num_steps(config, batches, instances_per_batch)
    return tuple(
        Segment(
            first_step=first + 1,
            num_steps=min(batches, last_step - first),
            epoch=first // batches + 1,
            first_position=0,
            instances_per_batch=instances_per_batch,
        )
        for first in range(0, last_step, batches)
    )


def _num_steps(config: Mapping[str, Any], batches_per_epoch: int, instances_per_batch: int) -> int:
    """Steps that the trainer was told to take: the shorter of max_duration and hard_stop."""
    trainer = config.get("trainer") or {}
    tokens_per_step = instances_per_batch * int(config["dataset"]["sequence_length"])
    steps = []
    for duration in (trainer.get("max_duration"), trainer.get("hard_stop")):
        if duration:
            value, unit = int(duration["value"]), duration["unit"]
            steps.append({"steps": value, "epochs": value * batches_per_epoch}.get(unit, -(-value // tokens_per_step)))
    if not steps:
        raise CorruptFile("config.json states no trainer.max_duration")
    return min(steps)


def fingerprint(dataset: Mapping[str, Any], files: tuple[TokenFile, ...], dtype: str) -> str:
    """OLMo-core's dataset fingerprint v2.0 of an FSL dataset: base names and sizes, no content and no seed."""
    tokenizer = dataset.get("tokenizer") or {}
    digest = hashlib.sha256(b"class=NumpyFSLDataset")
    fields = {
        "vocab_size": tokenizer.get("vocab_size"),
        "pad_token_id": tokenizer.get("pad_token_id"),
        "eos_token_id": tokenizer.get("eos_token_id"),
        "dtype": np.dtype(dtype).type,
        "max_target_sequence_length": dataset.get("max_target_sequence_length"),
        "bos_token_id": tokenizer.get("bos_token_id"),
    }
    for name, value in fields.items():
        digest.update(f"{name}={value},".encode())
    for file in files:
        digest.update(f"path={Path(file.name).name},size={file.num_bytes},".encode())
    return digest.hexdigest()


def _prove_order(
    folder: Path,
    checkpoints: Mapping[int, Path],
    dataset: Mapping[str, Any],
    files: tuple[TokenFile, ...],
    num_instances: int,
    segments: tuple[Segment, ...],
    seed: int,
    chunk_size: int,
) -> OrderTrust:
    """Compare with what the trainer left behind: dataset fingerprint, loader state, global indices.

    Raises:
        OrderMismatch: one of them contradicts the data or the rule.
    """
    witnesses = []
    for step, path in checkpoints.items():
        if not (path / "train" / "rank0.pt").is_file():
            continue
        state = read_torch_archive(path / "train" / "rank0.pt").value
        _check_loader(step, path, state, dataset, files, segments, seed)
        witnesses = ["dataset fingerprint and loader state of every checkpoint"]
    for segment in segments:
        for recorded in folder.rglob(
            f"global_indices*_dataset_size{num_instances}_epoch{segment.epoch}_seed{seed}_v1.npy"
        ):
            expected = global_indices(num_instances, seed=seed, epoch=segment.epoch, chunk_size=chunk_size)
            if not np.array_equal(np.fromfile(recorded, dtype="<u4"), expected):
                raise OrderMismatch(
                    f"{recorded}, the trainer's own order, is not what the rule gives for epoch {segment.epoch}"
                )
            witnesses.append(f"global indices of epoch {segment.epoch}")
    return OrderTrust(
        level="derived",
        witness=", ".join(dict.fromkeys(witnesses)) or "rule and file sizes only",
        missing="a record of the token ids that were consumed",
    )


def _check_loader(
    step: int,
    path: Path,
    state: Mapping[str, Any],
    dataset: Mapping[str, Any],
    files: tuple[TokenFile, ...],
    segments: tuple[Segment, ...],
    seed: int,
) -> None:
    loader = state.get("data_loader") or {}
    stated = loader.get("dataset_fingerprint")
    if stated and loader.get("dataset_fingerprint_version") == "v2.0":
        actual = fingerprint(dataset, files, files[0].dtype)
        if actual != stated:
            raise OrderMismatch(
                f"{path} was trained on other files: its dataset fingerprint is {stated[:12]}…, the files at hand give "
                f"{actual[:12]}… from their names and sizes"
            )
    batches = segments[0].num_steps
    taken = (int(loader.get("epoch") or 1) - 1) * batches + int(loader.get("batches_processed") or 0)
    if state.get("global_step", step) != step or taken != step or loader.get("seed", seed) != seed:
        raise OrderMismatch(
            f"{path}: the loader had served {taken} batches with seed {loader.get('seed')} at step "
            f"{state.get('global_step')}; the config says seed {seed} and {batches} batches an epoch"
        )


def list_checkpoints(run: Run) -> list[Checkpoint]:
    found = []
    for step, path in _checkpoint_folders(run.source).items():
        issues = () if (path / ".metadata.json").is_file() else (".metadata.json is missing: the save did not finish",)
        states = ("weights", "optimizer") + (("trainer",) if any((path / "train").glob("rank*.pt")) else ())
        found.append(
            Checkpoint(
                run=run.name,
                step=step,
                tokens=run.tokens_after(step),
                location=path,
                layout="olmo_core",
                states=states,
                issues=issues,
            )
        )
    return found
