"""Runs of the OLMo-core trainer: step<N>/{config.json, data_paths.txt, train/, model_and_optim/}.

Read here: what the order needs (dataset, loader, batch sizes, duration) and where the checkpoints are. The rest of
config.json is kept verbatim and interpreted by replay alone. A folder with nothing but a config.json can be indexed
too: the config says which files were read in which order.

Source: Python package ai2-olmo-core 3.0.0 (data/, train/checkpoint.py, train/callbacks/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, ForensicsError, OrderMismatch, UnknownLayout
from data_index.files import parse_json, require_file
from data_index.orders import epoch_order
from data_index.pickles import read_torch_archive
from data_index.run import Checkpoint, OrderTrust, Run, Segment
from data_index.sources import Imported
from data_index.sources.folder import default_name, first_existing, lookup, read_file, refuse_settings, step_folders
from data_index.sources.olmo_core_data import Dataset
from data_index.sources.olmo_core_datasets import read_dataset
from data_index.sources.olmo_core_steps import skip_steps, walk_of
from data_index.sources.trainer_record import read_record

if TYPE_CHECKING:
    from data_index.remote.files import Data


def _is_checkpoint(path: Path) -> bool:
    return (path / "model_and_optim" / ".metadata").is_file() and not (path / "config.yaml").is_file()


def _config_of(folder: Path, folders: Mapping[int, Path]) -> Path:
    """The config of the last checkpoint; of the folder itself where there is no checkpoint."""
    return (folders[max(folders)] if folders else folder) / "config.json"


def recognises(folder: Path) -> bool:
    path = _config_of(folder, step_folders(folder, _is_checkpoint))
    if not path.is_file():
        return False
    try:
        content = read_file(path)
        return b"olmo_core" in content and {"dataset", "data_loader"} <= set(_parse(content, path))
    except CorruptFile:
        # Named as one; reading it says what is wrong.
        return bool(step_folders(folder, _is_checkpoint))


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """Read an OLMo-core run folder.

    Args:
        data: where the token files are; default: the paths as written, then below the folder and its parents.
    Raises:
        MissingFile, CorruptFile, OrderMismatch, UnsupportedRecipe, UnknownLayout
    """
    refuse_settings(settings, "config.json")
    folder = folder.absolute()
    folders = step_folders(folder, _is_checkpoint)
    path = _config_of(folder, folders)
    if not folders and not path.is_file():
        raise UnknownLayout(f"{folder} holds neither step<N>/model_and_optim/.metadata nor config.json")
    config_bytes = read_file(path)
    config = _parse(config_bytes, path)
    try:
        return _import(folder, folders, path, config, config_bytes, name, data)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, StopIteration) as error:
        if isinstance(error, ForensicsError):
            raise
        raise CorruptFile(f"{path} lacks or misstates {error!r}") from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    config = parse_json(content, path)
    if not isinstance(config, dict):
        raise CorruptFile(f"{path} is not a config")
    return config


def _import(
    folder: Path,
    folders: Mapping[int, Path],
    config_path: Path,
    config: Mapping[str, Any],
    config_bytes: bytes,
    name: str | None,
    data: Data,
) -> Imported:
    dataset = read_dataset(folder, config_path.parent, config, data)
    walk = walk_of(config, dataset.num_positions, dataset.sequence_length)
    segments = skip_steps(walk.segments, lookup(config, "trainer.steps_to_skip") or [])
    states = {
        step: _loader_state(path / "train" / "rank0.pt")
        for step, path in folders.items()
        if (path / "train" / "rank0.pt").is_file()
    }
    world_size = max((int(state.get("world_size") or 1) for state in states.values()), default=1)
    run = Run(
        name=name or default_name(folder),
        layout="olmo_core",
        source=folder,
        sequence_length=dataset.sequence_length,
        files=dataset.files,
        order=dataset.order,
        segments=segments,
        trust=OrderTrust(level="derived", witness="rule and file sizes only"),
        config_format="olmo_core",
        config=config,
        masking=dataset.masking,
        pad_token_id=dataset.pad_token_id,
        tokenizer=first_existing(folder, data, "tokenizer.json"),
        eos_token_id=dataset.eos_token_id,
        environment={"world_size": world_size, "instances_per_epoch": dataset.num_positions},
        facts={"config": str(config_path), "config_sha256": hashlib.sha256(config_bytes).hexdigest()},
    )
    record = first_existing(folder, None, "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else None
    return Imported(
        run=_with_trust(run, dataset, folders, states, walk.segments),
        tables=read_record(record) if record else {},
        verbatim={"config.json": config_bytes},
        pieces=dataset.pieces,
    )


def _loader_state(path: Path) -> Mapping[str, Any]:
    state = read_torch_archive(path).value
    if not isinstance(state, dict):
        raise CorruptFile(f"{path} holds no trainer state")
    return state


# --- witnesses -------------------------------------------------------------------------------------------------------


def _with_trust(
    run: Run,
    dataset: Dataset,
    folders: Mapping[int, Path],
    states: Mapping[int, Mapping[str, Any]],
    segments: list[Segment],
) -> Run:
    """Compare with what the trainer left behind: dataset fingerprint, loader state, global indices.

    Raises:
        OrderMismatch: one of them contradicts the data or the rule; the message says which.
    """
    from dataclasses import replace

    witnesses = list(dataset.witnesses)
    for step, state in states.items():
        witnesses.append(_check_loader(run, dataset, folders[step], step, state, segments))
    orders = [said for epoch in run.epochs for said in _check_global_indices(run, dataset, epoch)]
    if not orders:
        _refuse_other_indices(run, dataset)
    witnesses += orders
    if dataset.doubt:
        return replace(run, trust=OrderTrust(level="unknown", witness=dataset.doubt))
    return replace(
        run,
        trust=OrderTrust(
            level="derived",
            witness=", ".join(dict.fromkeys(w for w in witnesses if w)) or "rule and file sizes only",
            missing="a record of the token ids that were consumed",
        ),
    )


def _check_global_indices(run: Run, dataset: Dataset, epoch: int) -> list[str]:
    """The trainer's own order files for an epoch, anywhere below the run's folder, against the rule."""
    recorded = sorted(run.source.rglob(dataset.indices_file(epoch)))
    expected = epoch_order_of(run, dataset, epoch) if recorded else np.empty(0)
    for path in recorded:
        if require_file(path) != 4 * len(expected) or not np.array_equal(np.fromfile(path, dtype="<u4"), expected):
            raise OrderMismatch(
                f"{path}, the trainer's own order, is not what the rule gives for epoch {epoch}: config.json or the "
                "token files are another run's"
            )
    return [f"global indices of epoch {epoch}"] if recorded else []


def _refuse_other_indices(run: Run, dataset: Dataset) -> None:
    """The trainer names its order files by what the order depends on (seed, epoch, number of instances).

    Raises:
        OrderMismatch: there are some, and none is called as this run's would be.
    """
    there = sorted(run.source.rglob("global_indices*.npy"))
    if there:
        raise OrderMismatch(
            f"{there[0]}, the trainer's own order, is of another seed, epoch or number of instances: by the config and "
            f"the token files it would be called {dataset.indices_file(min(run.epochs))}, so one of them is another's"
        )


def epoch_order_of(run: Run, dataset: Dataset, epoch: int) -> np.ndarray:
    """The order before the run's pieces are written down, when only the dataset knows how many instances there are."""
    return epoch_order(run, epoch, num_instances=dataset.num_instances)


def _check_loader(
    run: Run, dataset: Dataset, path: Path, step: int, state: Mapping[str, Any], segments: list[Segment]
) -> str:
    loader = state.get("data_loader") or {}
    witness = "loader state of every checkpoint"
    stated = dataset.stated_fingerprint(loader)
    if stated is not None:
        actual = dataset.fingerprint()
        if actual is not None and actual != stated:
            raise OrderMismatch(
                f"{path} was trained on other files: its dataset fingerprint is {stated[:12]}…, the files at hand give "
                f"{actual[:12]}… from their names and sizes"
            )
        witness = "dataset fingerprint and loader state of every checkpoint" if actual else witness
    seed = run.order.parameters["seed"]
    place = (int(loader.get("epoch") or 1), int(loader.get("tokens_processed") or 0) // run.sequence_length)
    if loader.get("tokens_processed") is None:
        place = (place[0], int(loader.get("batches_processed") or 0) * segments[0].instances_per_batch)
    expected = _place_after(step, segments)
    same = _begin(place, segments, run) == _begin(expected, segments, run)
    if state.get("global_step", step) != step or not same or loader.get("seed", seed) != seed:
        raise OrderMismatch(
            f"{path}: at step {state.get('global_step')} the loader stood at instance {place[1]} of epoch {place[0]} "
            f"with seed {loader.get('seed')}; by the config step {step} ends at instance {expected[1]} of epoch "
            f"{expected[0]} with seed {seed}: the checkpoint or the config is another run's"
        )
    return witness


def _place_after(step: int, segments: list[Segment]) -> tuple[int, int]:
    """Epoch, and instances of its order consumed, after a step."""
    for segment in segments:
        if segment.first_step <= step <= segment.last_step:
            return segment.epoch, segment.positions_of_step(step).stop
    return segments[0].epoch, segments[0].first_position


def _begin(place: tuple[int, int], segments: list[Segment], run: Run) -> tuple[int, int]:
    """The end of an epoch is the start of the next."""
    ends = [s.first_position + s.num_steps * s.instances_per_batch for s in segments if s.epoch == place[0]]
    later = any(segment.epoch > place[0] for segment in segments)
    return (place[0] + 1, 0) if later and ends and place[1] >= max(ends) else place


def list_checkpoints(run: Run) -> list[Checkpoint]:
    found = []
    for step, path in step_folders(run.source, _is_checkpoint).items():
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
