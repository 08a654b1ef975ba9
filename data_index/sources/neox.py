"""Runs of GPT-NeoX: its configuration files, `.bin/.idx` data, checkpoints as it writes them itself (global_step<N>/)
and as transformers saves them (step<N>/).

The order follows from the config (data paths and weights, split, seed, train_iters, batch size) and the sizes in the
`.idx` files. Where a set lies in training order already, as Pythia's pre-shuffled ones do, it is read in that order.
What no config file says can be given: forensics add … --set train_batch_size=1024.

Source: EleutherAI/gpt-neox v1.0 and main (megatron/data/, megatron/neox_arguments/); EleutherAI/pythia @ a19eecb
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError, OrderMismatch, UnknownLayout, UnsupportedRecipe
from data_index.files import read_json
from data_index.kinds import table_of_rows
from data_index.neox_checkpoint import is_neox_checkpoint, neox_states, read_counts
from data_index.olmo_checkpoint import layout_of, states_of
from data_index.orders.megatron import DatasetShuffle, neox_shuffle
from data_index.orders.megatron_samples import (
    normalized,
    split_borders,
    weighted_num_samples,
    weights_by_num_documents,
)
from data_index.plain_yaml import read_yaml
from data_index.remote.files import Data, RemoteFiles
from data_index.run import Checkpoint, Order, OrderTrust, Run, Segment, TokenFile
from data_index.sources import Imported
from data_index.sources.folder import default_name, first_existing, read_file, step_folders
from data_index.sources.megatron_data import (
    IndexedDataset,
    cut_in_order,
    documents_of_datasets,
    files_in_pieces,
    find_dataset,
    preshuffled_on_server,
    shuffled_pieces,
)
from data_index.sources.neox_model import model_settings
from data_index.sources.trainer_record import read_record

SEED = 1234  # megatron/neox_arguments/neox_args.py
DEFAULT_SPLIT = "969, 30, 1"


def config_files(folder: Path) -> list[Path]:
    """The YAML files in which a run was configured, in the order in which later ones add to earlier ones.

    Where there are none, those that the trainer saved with its last checkpoint.
    """
    own = list(neox_folders(folder).values())[-1:]
    for places in ([folder, folder / "configs"], [path / "configs" for path in own]):
        found = [path for place in places for path in place.glob("*.y*ml") if path.suffix in (".yml", ".yaml")]
        if found:
            return sorted(found)
    return []


def merged_config(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All configuration files together, top-level dashes as underscores, and what the user set.

    Raises:
        CorruptFile, UnsafeFile
    """
    config: dict[str, Any] = {}
    for path in config_files(folder):
        for key, value in read_yaml(path).items():
            name = str(key).replace("-", "_")
            if name in config and config[name] != value:
                raise CorruptFile(f"{path} sets {name} to {value!r}, another file of the run to {config[name]!r}")
            config[name] = value
    return config | {key.replace("-", "_"): value for key, value in settings.items()}


def recognises(folder: Path) -> bool:
    try:
        config = merged_config(folder, {})
    except ForensicsError:
        return False
    return bool({"train_iters", "train_epochs"} & set(config)) and bool({"data_path", "train_data_paths"} & set(config))


def read(folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
    """Read a NeoX run folder.

    Args:
        data: where the `.bin` and `.idx` files are; default: the paths as written, then below the folder and around it.
        settings: what no config file says, by its names: data_path, seq_length, train_iters, train_batch_size, seed,
            split; and `order` (`shuffled` or `preshuffled`), `neox_version` (`v1.0` or `main`).
    Raises:
        MissingFile, CorruptFile, UnsafeFile, OrderMismatch, UnsupportedRecipe, UnknownLayout
    """
    folder = folder.absolute()
    config = merged_config(folder, settings)
    if not config:
        raise UnknownLayout(
            f"{folder} holds no configuration file (*.yml): say what the trainer was told with --set data_path=PREFIX "
            "--set seq_length=2048 --set train_iters=143000 --set train_batch_size=1024"
        )
    try:
        return _import(folder, config, name, data)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ForensicsError):
            raise
        raise CorruptFile(
            f"the configuration of {folder} lacks or misstates {error} (--set {error}=… gives it)"
        ) from error


def _import(folder: Path, config: dict[str, Any], name: str | None, data: Data) -> Imported:
    length, steps = int(config["seq_length"]), int(config["train_iters"])
    batch = instances_per_batch(config)
    files = _cut_on_server(config, data, length)
    cut_by_header = files is not None
    datasets = [] if cut_by_header else [find_dataset(folder, data, prefix) for prefix in data_prefixes(config)]
    files = files or _preshuffled(config, datasets, length)
    pieces, extra = None, {}
    if files is not None:
        order = Order(rule="sequential")
        trust = OrderTrust(
            level="derived",
            witness="the data lie in training order, one sequence a row",
            missing="a record of the token ids that were consumed"
            + (", and the .idx file, of which only the header was read" if cut_by_header else ""),
        )
        if sum(file.num_instances for file in files) < steps * batch:
            steps = sum(file.num_instances for file in files) // batch
    else:
        shuffles, weights = shuffles_of(config, datasets, steps * batch)
        rows = int(config.get("train_micro_batch_size_per_gpu", batch)) * data_parallel_ranks(config, batch)
        order = Order(
            rule="megatron",
            parameters={
                "datasets": [asdict(shuffle) for shuffle in shuffles],
                "weights": weights,
                "num_positions": steps * batch,
                "rows_per_loader_batch": rows,
            },
        )
        files, pieces = files_in_pieces(datasets), shuffled_pieces(datasets, shuffles)
        trust = OrderTrust(
            level="derived",
            witness="the trainer's rule and the sizes in the .idx files",
            missing="a record of the token ids that were consumed",
        )
        extra["documents"] = table_of_rows("documents", documents_of_datasets(datasets), folder)
    if steps < 1:
        raise OrderMismatch(f"the data of {folder} do not fill one batch of {batch}")
    config = model_settings(folder) | config  # of a repository; the trainer's own word counts
    config |= _vocabulary(folder, config)
    run = Run(
        name=name or default_name(folder),
        layout="neox",
        source=folder,
        sequence_length=length + 1,
        extra_label=True,
        files=files,
        order=order,
        segments=(Segment(first_step=1, num_steps=steps, epoch=1, first_position=0, instances_per_batch=batch),),
        trust=trust,
        config_format="neox",
        config=config,
        tokenizer=first_existing(folder, data, str(config.get("vocab_file") or "tokenizer.json")),
        facts={
            "neox_version": str(config.get("neox_version", "v1.0")),
            "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        },
    )
    record = folder / "metrics.jsonl"
    verbatim = {f"config-{n}-{path.name}": read_file(path) for n, path in enumerate(config_files(folder))}
    return Imported(
        run=run,
        tables=(read_record(record) if record.is_file() else {}) | extra,
        verbatim=verbatim,
        pieces=pieces,
    )


def data_prefixes(config: Mapping[str, Any]) -> list[str]:
    if config.get("data_impl", "mmap") not in ("mmap", "infer"):
        raise UnsupportedRecipe(f"data_impl {config['data_impl']!r} is not read; mmap is")
    listed = config.get("train_data_paths")
    if listed:
        return [str(prefix) for prefix in listed]
    return [str(config["data_path"])]


def instances_per_batch(config: Mapping[str, Any]) -> int:
    """Rows of a step: `train_batch_size`, else what its factors give.

    Raises:
        OrderMismatch: the config does not say; Pythia's published configs do not.
    """
    if config.get("train_batch_size"):
        return int(config["train_batch_size"])
    rows, ranks = config.get("train_micro_batch_size_per_gpu"), config.get("global_num_gpus")
    if rows is None or ranks is None:
        raise OrderMismatch(
            "the configuration does not say how many rows a step reads (train_batch_size): give it with --set "
            "train_batch_size=1024"
        )
    split = int(config.get("model_parallel_size", 1)) * max(int(config.get("pipe_parallel_size", 1)), 1)
    steps = int(config.get("gradient_accumulation_steps", config.get("gas", 1)) or 1)
    return int(rows) * steps * (int(ranks) // split)


def data_parallel_ranks(config: Mapping[str, Any], batch: int) -> int:
    rows = int(config.get("train_micro_batch_size_per_gpu", batch))
    return max(batch // (rows * int(config.get("gradient_accumulation_steps", config.get("gas", 1)) or 1)), 1)


def _cut_on_server(config: Mapping[str, Any], data: Data, length: int) -> tuple[TokenFile, ...] | None:
    """Files of a pre-shuffled set on servers whose index is too large to fetch; None for any other data."""
    prefixes = data_prefixes(config)
    if not isinstance(data, RemoteFiles) or len(prefixes) > 1 or config.get("order") == "shuffled":
        return None
    return preshuffled_on_server(data, prefixes[0], length + 1)


def _preshuffled(config: Mapping[str, Any], datasets: list[IndexedDataset], length: int) -> Any:
    """Files in training order where the set is pre-shuffled; None where the trainer shuffled it."""
    stated = config.get("order")
    if stated not in (None, "shuffled", "preshuffled"):
        raise CorruptFile(f"order = {stated!r} is neither shuffled nor preshuffled")
    files = cut_in_order(datasets[0], length + 1) if len(datasets) == 1 and stated != "shuffled" else None
    if stated == "preshuffled" and files is None:
        raise OrderMismatch(
            f"{datasets[0].prefix} is no pre-shuffled set for seq_length {length}: its sequences are not all "
            f"{length + 1} tokens, one after another"
        )
    return files


def shuffles_of(
    config: Mapping[str, Any], datasets: list[IndexedDataset], num_positions: int
) -> tuple[list[DatasetShuffle], list[float]]:
    """How the trainer shuffled each dataset, and the weights that it blended them with.

    With `train_data_paths` each dataset is shuffled for half a percent more than its share; with `data_path` the part
    that `split` gives to training is.
    """
    length, seed = int(config["seq_length"]), int(config.get("seed", SEED))
    pack = str(config.get("pack_impl", "packed"))
    if not config.get("train_data_paths"):
        borders = split_borders(str(config.get("split", DEFAULT_SPLIT)), datasets[0].index.num_sequences)
        shuffle = neox_shuffle(
            datasets[0].index.sizes,
            sequence_length=length,
            seed=seed,
            num_samples=num_positions,
            split=borders[:2],
            pack_impl=pack,
        )
        return [shuffle], [1.0]
    weights = [float(weight) for weight in config.get("train_data_weights") or [1.0] * len(datasets)]
    if config.get("weight_by_num_documents"):
        counts = [dataset.index.num_sequences for dataset in datasets]
        weights = weights_by_num_documents(counts, float(config.get("weighted_sampler_alpha", 1.0)))
    if len(weights) != len(datasets):
        raise CorruptFile(f"the configuration gives {len(weights)} weights for {len(datasets)} train_data_paths")
    shuffles: list[DatasetShuffle] = []
    for dataset, wanted in zip(datasets, weighted_num_samples(weights, num_positions), strict=True):
        shuffles.append(
            neox_shuffle(
                dataset.index.sizes,
                sequence_length=length,
                seed=seed,
                num_samples=wanted,
                pack_impl=pack,
                first_instance=sum(shuffle.num_samples for shuffle in shuffles),
            )
        )
    return shuffles, normalized(weights)  # the blend divides by their sum once more, as the trainer does


def _vocabulary(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The padded vocabulary's size, from a checkpoint's own config where the trainer's does not say."""
    if "padded_vocab_size" in config:
        return {}
    for path in neox_folders(folder).values():
        try:
            return {"padded_vocab_size": read_counts(path).padded_vocab_size}
        except ForensicsError:
            continue
    for path in step_folders(folder, _is_hf).values():
        try:
            size = read_json(path / "config.json").get("vocab_size")
        except (ForensicsError, AttributeError):
            continue
        if isinstance(size, int):
            return {"padded_vocab_size": size}
    return {}


def _is_hf(path: Path) -> bool:
    return layout_of(path) == "hf"


def neox_folders(folder: Path) -> dict[int, Path]:
    """Checkpoints that the trainer wrote itself, by step. Its file `latest`, which names one, is not asked."""
    return step_folders(folder, is_neox_checkpoint, stem="global_step")


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """All checkpoints; where one step was saved in both layouts, the trainer's own, which has the optimizer."""
    layouts = {step: ("hf", path, states_of(path)) for step, path in step_folders(run.source, _is_hf).items()}
    layouts |= {step: ("neox", path, neox_states(path)) for step, path in neox_folders(run.source).items()}
    return [
        Checkpoint(
            run=run.name,
            step=step,
            tokens=run.tokens_after(step),
            location=path,
            layout=layout,
            states=states,
        )
        for step, (layout, path, states) in sorted(layouts.items())
    ]
