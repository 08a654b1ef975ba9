"""What the readers of OLMo-core's datasets share: the parts of a config, and what the order needs of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile
from data_index.instances.documents import source_order
from data_index.orders.olmo_core_fingerprint import dataset_fingerprint
from data_index.pieces import Pieces
from data_index.run import Masking, Order, TokenFile
from data_index.sources.folder import find_file, find_on_disk, place_files, read_file, token_dtype

if TYPE_CHECKING:
    from data_index.remote.files import Data


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
class Described:
    """The parts of a config that every dataset has."""

    folder: Path
    checkpoint: Path
    dataset: Mapping[str, Any]
    loader: Mapping[str, Any]
    data: Data

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
            place: find_on_disk(self.folder, self.data, str(mask_names[number]), "label mask")
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


def fsl_order(described: Described, chunk_size: int = 1) -> Order:
    shuffled = described.loader.get("shuffle", True) is not False
    return Order(
        rule="olmo_core_fsl", parameters={"seed": described.seed, "chunk_size": chunk_size, "shuffle": shuffled}
    )


def fsl_indices_file(described: Described, num_instances: int, chunk_size: int = 1) -> Callable[[int], str]:
    chunk = f"_chunk{chunk_size}" if chunk_size > 1 else ""
    if described.loader.get("shuffle", True) is False:
        return lambda epoch: f"global_indices{chunk}_dataset_size{num_instances}_v1.npy"
    return lambda epoch: f"global_indices{chunk}_dataset_size{num_instances}_epoch{epoch}_seed{described.seed}_v1.npy"
