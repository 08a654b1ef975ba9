"""What an OLMo-core run read: its datasets and loaders as files, instances and an order rule.

    NumpyFSLDataset        fixed lengths cut from each file, chunks of them kept together
    NumpyPaddedFSLDataset  one document an instance, padded
    NumpyPackedFSLDataset  documents packed into instances; a packing that the trainer kept counts more than ours
    composable sources     concat-and-chunk sources under one loader

Other datasets are refused by name. Source: Python package ai2-olmo-core 3.0.0 (data/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnsupportedRecipe
from data_index.instances.concatenated import concatenated_pieces
from data_index.instances.documents import documents_of, source_order
from data_index.instances.packed import group_documents, grouped, pack, packed_pieces, sort_kernel
from data_index.instances.packing_cache import packing_key, packing_of, read_packings
from data_index.instances.padded import padded_pieces
from data_index.orders.olmo_core_composable import indices_file_name, sources_of_epoch
from data_index.orders.olmo_core_fingerprint import (
    concat_and_chunk_fingerprint,
    dataset_fingerprint,
    document_source_fingerprint,
    fsl_fields,
    packed_fields,
    padded_fields,
)
from data_index.pieces import Pieces
from data_index.run import Masking, Order, TokenFile
from data_index.sources.folder import find_file, lookup, numbered, place_files, read_file, token_dtype

# The kernel with which the packings of the published fixtures were computed.
KNOWN_SORT_KERNEL = "AVX512, numpy 2"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A dataset as the order needs it.

    Attributes:
        num_instances: all that there are. num_positions: those that an epoch's order holds.
        fingerprint: the trainer's own, of the files at hand; gives None where it cannot be computed.
        doubt: why the instances may not be those that the trainer had; empty if they are.
        indices_file: epoch -> the name (or a pattern for it) of the trainer's own order file.
    """

    files: tuple[TokenFile, ...]
    sequence_length: int
    num_instances: int
    num_positions: int
    order: Order
    masking: Masking
    indices_file: Callable[[int], str]
    fingerprint: Callable[[], str | None]
    fingerprint_key: str = "dataset_fingerprint"
    pieces: Pieces | None = None
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    witnesses: tuple[str, ...] = ()
    doubt: str = ""

    def stated_fingerprint(self, loader: Mapping[str, Any]) -> str | None:
        """What a loader's state says of the dataset, in the form that `fingerprint` gives."""
        stated = loader.get(self.fingerprint_key)
        if self.fingerprint_key == "source_fingerprints":
            return ",".join(map(str, stated)) if stated else None
        return str(stated) if stated and loader.get("dataset_fingerprint_version") == "v2.0" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """The parts of a config that every dataset has."""

    folder: Path
    checkpoint: Path
    dataset: Mapping[str, Any]
    loader: Mapping[str, Any]
    data: Path | None

    @property
    def tokenizer(self) -> Mapping[str, Any]:
        return self.dataset.get("tokenizer") or {}

    @property
    def seed(self) -> int:
        return int(self.loader["seed"])

    def dtype(self) -> np.dtype:
        stated = self.dataset.get("dtype")
        if stated:
            return token_dtype(stated)
        largest = int(self.tokenizer.get("vocab_size", 2**32)) - 1
        return np.dtype(next(n for n in ("uint8", "uint16", "uint32", "uint64") if largest <= np.iinfo(n).max))

    def place(self, instances_of: Callable[[int], int], *, masks: bool = True) -> tuple[TokenFile, ...]:
        """The token files in the trainer's order, found on disk.

        Raises:
            MissingFile
        """
        names, order = self._names()
        mask_names = self.dataset.get("label_mask_paths") or [] if masks else []
        if mask_names and len(mask_names) != len(names):
            raise CorruptFile(f"config.json names {len(mask_names)} label masks for {len(names)} token files")
        label_masks = {
            place: find_file(self.folder, self.data, str(mask_names[number]), "label mask")
            for place, number in enumerate(order)
            if mask_names
        }
        paths = [find_file(self.folder, self.data, name, "token file") for name in names]
        return place_files(names, paths, self.dtype().name, instances_of, label_masks=label_masks)

    def _names(self) -> tuple[list[str], list[int]]:
        """Names in the trainer's order, and each one's place in the config; data_paths.txt is permuted already."""
        seed = self.dataset.get("source_permutation_seed")
        listing = self.checkpoint / "data_paths.txt"
        written = [str(path) for path in self.dataset.get("paths") or []]
        if listing.is_file():
            names = read_file(listing).decode().splitlines()
        elif self.dataset.get("mix") or self.dataset.get("expand_glob"):
            raise MissingFile(
                f"{self.checkpoint} has no data_paths.txt, and its config names a mix or a pattern of files"
            )
        else:
            names = [written[place] for place in source_order(len(written), seed)]
        if not names:
            raise MissingFile(f"{self.checkpoint} lists no token files (data_paths.txt, dataset.paths)")
        return names, source_order(len(names), seed)

    def fingerprint(self, class_name: str, fields: Mapping[str, Any], files: Sequence[TokenFile]) -> str:
        return dataset_fingerprint(class_name, fields, self.as_listed(files))

    def as_listed(self, files: Sequence[TokenFile]) -> list[tuple[str, int]]:
        """Each file under the name that the trainer knew, and its bytes."""
        return [(name, file.num_bytes) for name, file in zip(self._names()[0], files, strict=True)]

    def masking(self, *, sees_padding: bool = False) -> Masking:
        chosen = self.dataset.get("instance_filter_config") or self.loader.get("instance_filter_config")
        if not chosen:
            return Masking()
        longest = int(chosen.get("repetition_max_period", 13))
        shortest, most = int(chosen.get("repetition_min_period", 1)), int(chosen.get("repetition_max_count", 32))
        return Masking(repetition=(longest, shortest, most), filter_sees_padding=sees_padding)


def read_dataset(folder: Path, checkpoint: Path, config: Mapping[str, Any], data: Path | None) -> Dataset:
    """
    Args:
        checkpoint: the folder that the config lies in.
    Raises:
        MissingFile, CorruptFile, OrderMismatch, UnsupportedRecipe
    """
    dataset, loader = config["dataset"], config["data_loader"]
    if isinstance(dataset, list) or "Composable" in str(loader.get("_CLASS_")):
        sources = dataset if isinstance(dataset, list) else dataset.get("sources", [dataset])
        return _composable(folder, checkpoint, sources, loader, data)
    described = _Described(folder=folder, checkpoint=checkpoint, dataset=dataset, loader=loader, data=data)
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


def _order(described: _Described, chunk_size: int = 1) -> Order:
    shuffled = described.loader.get("shuffle", True) is not False
    return Order(
        rule="olmo_core_fsl", parameters={"seed": described.seed, "chunk_size": chunk_size, "shuffle": shuffled}
    )


def _indices_file(described: _Described, num_instances: int, chunk_size: int = 1) -> Callable[[int], str]:
    chunk = f"_chunk{chunk_size}" if chunk_size > 1 else ""
    if described.loader.get("shuffle", True) is False:
        return lambda epoch: f"global_indices{chunk}_dataset_size{num_instances}_v1.npy"
    return lambda epoch: f"global_indices{chunk}_dataset_size{num_instances}_epoch{epoch}_seed{described.seed}_v1.npy"


def _fixed(described: _Described) -> Dataset:
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
        order=_order(described, chunk),
        masking=described.masking(),
        indices_file=_indices_file(described, num_instances, chunk),
        fingerprint=lambda: described.fingerprint("NumpyFSLDataset", fields, files),
        eos_token_id=described.tokenizer.get("eos_token_id"),
    )


def _tokens(file: TokenFile) -> np.ndarray:
    """All tokens of a file, mapped; documents are found in them once, at `add`."""
    dtype = np.dtype(file.dtype).newbyteorder("<")
    whole = file.num_bytes // dtype.itemsize
    return np.memmap(file.path, dtype=dtype, mode="r", shape=(whole,)) if whole else np.empty(0, dtype)


def _in_pieces(
    described: _Described,
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
        order=_order(described),
        indices_file=_indices_file(described, num_instances),
        fingerprint=lambda: described.fingerprint(class_name, fields, files),
        pieces=pieces,
        pad_token_id=int(described.tokenizer["pad_token_id"]),
        eos_token_id=int(described.tokenizer["eos_token_id"]),
        **settings,
    )


def _padded(described: _Described) -> Dataset:
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


def _packed(described: _Described) -> Dataset:
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


# --- composable sources ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
    """One source of a composed order; `names` of its files as its config lists them."""

    names: tuple[str, ...]
    files: tuple[TokenFile, ...]
    pieces: Pieces
    sequence_length: int
    max_sequence_length: int
    fingerprint: str


def _composable(
    folder: Path, checkpoint: Path, sources: Sequence[Mapping[str, Any]], loader: Mapping[str, Any], data: Path | None
) -> Dataset:
    """Concat-and-chunk sources of token files; everything else that can be composed is refused by name."""
    cut = [_chunked_source(folder, checkpoint, source, loader, data) for source in sources]
    lengths = {(source.sequence_length, source.max_sequence_length) for source in cut}
    if len(lengths) != 1:
        raise UnsupportedRecipe(f"config.json: sources of several sequence lengths {sorted(lengths)}")
    ((length, longest),) = lengths
    sizes = [source.pieces.num_instances for source in cut]
    # Sources may name the same files.
    names = numbered([name for source in cut for name in source.names])
    files = [file for source in cut for file in source.files]
    shuffled = loader.get("shuffle", True) is not False
    strategy = str(loader.get("shuffle_strategy") or "inter_source") if shuffled else None
    per_epoch = int(loader.get("sources_per_epoch", -1))
    parameters = {
        "seed": int(loader["seed"]),
        "source_sizes": sizes,
        "chunk_size": longest // length,
        "sources_per_epoch": per_epoch,
    } | ({"strategy": strategy} if strategy else {})
    taken = _instances_per_epoch(sizes, per_epoch, strategy)
    described = _Described(folder=folder, checkpoint=checkpoint, dataset=sources[0], loader=loader, data=data)
    tokenizer = loader.get("tokenizer") or lookup(sources[0], "tokenizer") or {}
    return Dataset(
        files=tuple(replace(file, name=name) for file, name in zip(files, names, strict=True)),
        sequence_length=length,
        num_instances=sum(sizes),
        num_positions=taken,
        order=Order(rule="olmo_core_composable", parameters=parameters),
        masking=described.masking(),
        indices_file=lambda epoch: indices_file_name(
            taken,
            sequence_length=length,
            max_sequence_length=longest,
            seed=int(loader["seed"]),
            epoch=epoch,
            strategy=strategy,
        ),
        fingerprint=lambda: None if any(file.label_mask for file in files) else ",".join(s.fingerprint for s in cut),
        fingerprint_key="source_fingerprints",
        pieces=_joined([(source.pieces, len(source.files)) for source in cut]),
        eos_token_id=tokenizer.get("eos_token_id"),
    )


def _instances_per_epoch(sizes: Sequence[int], per_epoch: int, strategy: str | None) -> int:
    """
    Raises:
        UnsupportedRecipe: epochs that take turns at the sources are not equally long.
    """
    num_groups = len(sizes) // len(sources_of_epoch(len(sizes), 1, per_epoch))
    taken = set()
    for epoch in range(1, num_groups + 1):
        some = [sizes[source] for source in sources_of_epoch(len(sizes), epoch, per_epoch)]
        taken.add(min(some) * len(some) if strategy == "interleaved_source" else sum(some))
    if len(taken) > 1:
        raise UnsupportedRecipe(
            f"config.json: sources_per_epoch {per_epoch} makes epochs of {sorted(taken)} instances; this version "
            "computes epochs of one length"
        )
    return taken.pop()


def _chunked_source(
    folder: Path, checkpoint: Path, source: Mapping[str, Any], loader: Mapping[str, Any], data: Path | None
) -> _Source:
    kind = str(source.get("_CLASS_", "")).rsplit(".", 1)[-1]
    inner = source.get("sources") or []
    names = {str(one.get("_CLASS_", "")).rsplit(".", 1)[-1] for one in inner}
    if kind != "ConcatAndChunkInstanceSourceConfig" or names - {"NumpyDocumentSourceConfig"} or len(inner) != 1:
        raise UnsupportedRecipe(
            f"config.json: source {kind} of {', '.join(sorted(names)) or 'nothing'} has an order that this version "
            "does not compute; ConcatAndChunkInstanceSourceConfig of one NumpyDocumentSourceConfig has"
        )
    if inner[0].get("max_document_length") is not None:
        raise UnsupportedRecipe("config.json: max_document_length cuts documents; this version does not compute that")
    described = _Described(
        folder=folder,
        checkpoint=checkpoint,
        dataset=dict(inner[0]) | {"paths": inner[0]["source_paths"]},
        loader=loader,
        data=data,
    )
    length = int(source["sequence_length"])
    longest = int(source.get("max_sequence_length") or length)
    files = described.place(lambda num_bytes: 0)
    tokens = [file.num_bytes // np.dtype(file.dtype).itemsize for file in files]
    size = int(inner[0].get("source_group_size") or 1)
    size = len(files) if size == -1 else size
    pieces = concatenated_pieces(tokens, sequence_length=length, max_sequence_length=longest, source_group_size=size)
    prints = [
        document_source_fingerprint(
            [(name, count) for (name, _), count in zip(group, counts, strict=True)],
            dtype=files[0].dtype,
            eos_token_id=int(described.tokenizer["eos_token_id"]),
            bos_token_id=described.tokenizer.get("bos_token_id"),
        )
        for group, counts in zip(grouped(described.as_listed(files), size), grouped(tokens, size), strict=True)
    ]
    return _Source(
        names=tuple(name for name, _ in described.as_listed(files)),
        files=files,
        pieces=pieces,
        sequence_length=length,
        max_sequence_length=longest,
        fingerprint=concat_and_chunk_fingerprint(prints, longest),
    )


def _joined(parts: Sequence[tuple[Pieces, int]]) -> Pieces:
    """Pieces of several sources, one after another; each counts its own files from 0."""
    firsts, files, before, pieces_before = [np.zeros(1, dtype=np.int64)], [], 0, 0
    for pieces, num_files in parts:
        firsts.append(pieces.first[1:] + pieces_before)
        files.append(pieces.file + np.int32(before))
        before, pieces_before = before + num_files, pieces_before + len(pieces.file)
    return replace(
        parts[0][0],
        first=np.concatenate(firsts),
        file=np.concatenate(files),
        start=np.concatenate([pieces.start for pieces, _ in parts]),
        stop=np.concatenate([pieces.stop for pieces, _ in parts]),
    )
