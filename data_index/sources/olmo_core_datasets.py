"""OLMo-core's numpy datasets as files, instances and an order rule.

    NumpyFSLDataset        fixed lengths cut from each file, chunks of them kept together
    NumpyPaddedFSLDataset  one document an instance, padded
    NumpyPackedFSLDataset  documents packed into instances; a packing that the trainer kept counts more than ours

Composable sources are read by `olmo_core_composable`; other datasets are refused by name.
Source: Python package ai2-olmo-core 3.0.0 (data/numpy_dataset.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.instances.documents import documents_of
from data_index.instances.packed import group_documents, grouped, pack, packed_pieces, sort_kernel
from data_index.instances.packing_cache import packing_key, packing_of, read_packings
from data_index.instances.padded import padded_pieces
from data_index.orders.olmo_core_fingerprint import fsl_fields, packed_fields, padded_fields
from data_index.pieces import Pieces
from data_index.run import TokenFile
from data_index.sources.olmo_core_composable import read_composable
from data_index.sources.olmo_core_data import Dataset, Described, fsl_indices_file, fsl_order

if TYPE_CHECKING:
    from data_index.remote.files import Data

# The kernel with which the packings of the published fixtures were computed.
KNOWN_SORT_KERNEL = "AVX512, numpy 2"


def read_dataset(folder: Path, checkpoint: Path, config: Mapping[str, Any], data: Data) -> Dataset:
    """
    Args:
        checkpoint: the folder that the config lies in.
    Raises:
        MissingFile, CorruptFile, OrderMismatch, UnsupportedRecipe
    """
    dataset, loader = config["dataset"], config["data_loader"]
    if isinstance(dataset, list) or "Composable" in str(loader.get("_CLASS_")):
        sources = dataset if isinstance(dataset, list) else dataset.get("sources", [dataset])
        return read_composable(folder, checkpoint, sources, loader, data)
    described = Described(folder=folder, checkpoint=checkpoint, dataset=dataset, loader=loader, data=data)
    kind = str(dataset.get("_CLASS_", "")).rsplit(".", 1)[-1] or str(dataset.get("type", "unnamed"))
    readers = {
        "NumpyFSLDatasetConfig": _fixed,
        "fsl": _fixed,
        "NumpyPaddedFSLDatasetConfig": _padded,
        "padded_fsl": _padded,
        "NumpyPackedFSLDatasetConfig": _packed,
        "packed_fsl": _packed,
    }
    if kind not in readers:
        raise UnsupportedRecipe(f"config.json: dataset {kind} has an order that this version does not compute")
    if dataset.get("source_mixture_config"):
        raise UnsupportedRecipe("config.json: dataset.source_mixture_config is not read by this version; paths are")
    return readers[kind](described)


def _fixed(described: Described) -> Dataset:
    length = int(described.dataset["sequence_length"])
    longest = int(described.dataset.get("max_target_sequence_length") or length)
    if length < 1 or longest % length:
        raise CorruptFile(f"config.json: sequence_length {length} does not divide max_target_sequence_length {longest}")
    chunk, dtype = longest // length, described.dtype()
    files = described.place(lambda num_bytes: num_bytes // (dtype.itemsize * longest) * chunk)
    num_instances = sum(file.num_instances for file in files)
    fields = fsl_fields(described.tokenizer, dtype.name, described.dataset.get("max_target_sequence_length"))
    return Dataset(
        files=files,
        sequence_length=length,
        num_instances=num_instances,
        num_positions=num_instances // chunk * chunk,
        order=fsl_order(described, chunk),
        masking=described.masking(),
        indices_file=fsl_indices_file(described, num_instances, chunk),
        fingerprint=lambda: described.fingerprint("NumpyFSLDataset", fields, files),
        eos_token_id=described.tokenizer.get("eos_token_id"),
    )


def _tokens(file: TokenFile) -> np.ndarray:
    """All tokens of a file, mapped; documents are found in them once, at `add`."""
    dtype = np.dtype(file.dtype).newbyteorder("<")
    whole = file.num_bytes // dtype.itemsize
    return np.memmap(file.on_disk, dtype=dtype, mode="r", shape=(whole,)) if whole else np.empty(0, dtype)


def _in_pieces(
    described: Described,
    files: tuple[TokenFile, ...],
    pieces: Pieces,
    class_name: str,
    fields: Mapping[str, Any],
    **settings: Any,
) -> Dataset:
    num_instances = pieces.num_instances
    return Dataset(
        files=files,
        sequence_length=int(described.dataset["sequence_length"]),
        num_instances=num_instances,
        num_positions=num_instances,
        order=fsl_order(described),
        indices_file=fsl_indices_file(described, num_instances),
        fingerprint=lambda: described.fingerprint(class_name, fields, files),
        pieces=pieces,
        pad_token_id=int(described.tokenizer["pad_token_id"]),
        eos_token_id=int(described.tokenizer["eos_token_id"]),
        **settings,
    )


def _padded(described: Described) -> Dataset:
    length = int(described.dataset["sequence_length"])
    files = described.place(lambda num_bytes: 0)
    documents = [documents_of(_tokens(file), int(described.tokenizer["eos_token_id"])) for file in files]
    fields = padded_fields(described.tokenizer, described.dtype().name, length)
    return _in_pieces(
        described,
        files,
        padded_pieces(documents, length),
        "NumpyPaddedFSLDataset",
        fields,
        masking=described.masking(),
    )


def _packed(described: Described) -> Dataset:
    length, dataset = int(described.dataset["sequence_length"]), described.dataset
    strategy = str(dataset.get("long_doc_strategy") or "truncate")
    size, local = int(dataset.get("source_group_size") or 1), dataset.get("use_array_if_local")
    files = described.place(lambda num_bytes: 0)
    bos = described.tokenizer.get("bos_token_id")
    documents = [documents_of(_tokens(file), int(described.tokenizer["eos_token_id"]), bos) for file in files]
    tokens = [file.num_bytes // np.dtype(file.dtype).itemsize for file in files]
    groups = [
        group_documents(some, counts, sequence_length=length, long_doc_strategy=strategy)
        for some, counts in zip(grouped(documents, size), grouped(tokens, size), strict=True)
    ]
    kept = _kept_packings(described.folder, length)
    witnesses: tuple[str, ...] = ()
    doubt = ""
    if kept:
        keys = [
            packing_key(some, long_doc_strategy=strategy, use_array_if_local=local)
            for some in grouped(described.as_listed(files), size)
        ]
        packings = [packing_of(kept, key, group, length) for key, group in zip(keys, groups, strict=True)]
        witnesses = ("the packings that the trainer kept",)
    else:
        packings = [pack(group, length) for group in groups]
        doubt = _packing_doubt()
    fields = packed_fields(
        described.tokenizer,
        described.dtype().name,
        length,
        long_doc_strategy=strategy,
        source_group_size=size,
        use_array_if_local=local,
    )
    return _in_pieces(
        described,
        files,
        packed_pieces(packings, grouped(tokens, size)),
        "NumpyPackedFSLDataset",
        fields,
        masking=described.masking(sees_padding=True),
        witnesses=witnesses,
        doubt=doubt,
    )


def _packing_doubt() -> str:
    """Documents of one length are packed in the order in which a processor's sort leaves them."""
    kernel = sort_kernel()
    if kernel == KNOWN_SORT_KERNEL:
        return ""
    return (
        f"documents of one length were packed as this machine sorts them ({kernel}); the trainer's machine is only "
        f"known to agree where numpy sorts with {KNOWN_SORT_KERNEL}: give the packing caches of its work_dir"
    )


def _kept_packings(folder: Path, length: int) -> dict[str, Any]:
    homes = {path.parent for path in folder.rglob(f"document-indices-{length}-*.npy")}
    return {key: packing for home in sorted(homes) for key, packing in read_packings(home, length).items()}
