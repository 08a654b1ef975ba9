"""OLMo-core's fingerprints of datasets and sources: names, sizes and settings; no content and no seed.

Loader states in checkpoints hold them, so that a fingerprint of the files at hand tells whether they can be the run's.

Source: olmo_core/data/numpy_dataset.py and composable/*.py (Python package ai2-olmo-core 3.0.0), version v2.0
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np


def dataset_fingerprint(class_name: str, fields: Mapping[str, Any], files: Sequence[tuple[str, int]]) -> str:
    """Fingerprint v2.0 of a dataset.

    Args:
        class_name: such as NumpyFSLDataset.
        fields: in order; see `fsl_fields`, `padded_fields`, `packed_fields`.
        files: name or path, of which the last part counts, and bytes, in the dataset's order.
    """
    digest = hashlib.sha256(f"class={class_name}".encode())
    for name, value in fields.items():
        digest.update(f"{name}={value},".encode())
    for name, num_bytes in files:
        digest.update(f"path={PurePosixPath(name).name},size={num_bytes},".encode())
    return digest.hexdigest()


def fsl_fields(tokenizer: Mapping[str, Any], dtype: str, max_target_sequence_length: int | None) -> dict[str, Any]:
    """Fields of a NumpyFSLDataset."""
    return {
        **_token_fields(tokenizer, dtype),
        "max_target_sequence_length": max_target_sequence_length,
        "bos_token_id": tokenizer.get("bos_token_id"),
    }


def padded_fields(tokenizer: Mapping[str, Any], dtype: str, sequence_length: int) -> dict[str, Any]:
    """Fields of a NumpyPaddedFSLDataset."""
    return {**fsl_fields(tokenizer, dtype, None), "sequence_length": sequence_length}


def packed_fields(
    tokenizer: Mapping[str, Any],
    dtype: str,
    sequence_length: int,
    *,
    long_doc_strategy: str = "truncate",
    source_group_size: int = 1,
    use_array_if_local: bool | None = None,
) -> dict[str, Any]:
    """Fields of a NumpyPackedFSLDataset on local files; over the network, 3.0.0 adds hashes of their metadata files."""
    fields = {
        **_token_fields(tokenizer, dtype),
        "long_doc_strategy": long_doc_strategy,
        "bos_token_id": tokenizer.get("bos_token_id"),
        "sequence_length": sequence_length,
    }
    if source_group_size > 1:
        fields["source_group_size"] = source_group_size
    if use_array_if_local is not None:
        fields["use_array_if_local"] = use_array_if_local
    return fields


def _token_fields(tokenizer: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    names = ("vocab_size", "pad_token_id", "eos_token_id")
    return {**{name: tokenizer.get(name) for name in names}, "dtype": np.dtype(dtype).type}


def document_source_fingerprint(
    files: Sequence[tuple[str, int]],
    *,
    dtype: str,
    eos_token_id: int,
    bos_token_id: int | None = None,
    max_document_length: int | None = None,
    long_doc_strategy: str = "truncate",
) -> str:
    """Fingerprint of a composable NumpyDocumentSource without label masks.

    Args:
        files: full path as the config named it, and tokens, in order.
    """
    digest = hashlib.sha256(
        f"class=NumpyDocumentSource,self.dtype={np.dtype(dtype).type},self.eos_token_id={eos_token_id},"
        f"self.bos_token_id={bos_token_id},".encode()
    )
    if max_document_length is not None:
        digest.update(f"self.{max_document_length=},self.{long_doc_strategy=},".encode())
    for path, size in files:
        digest.update(f"{path=},{size=},".encode())
    return digest.hexdigest()


def concat_and_chunk_fingerprint(sources: Sequence[str], max_sequence_length: int) -> str:
    """Fingerprint of a ConcatAndChunkInstanceSource over sources with these fingerprints."""
    return _instance_source("ConcatAndChunkInstanceSource", f"self.{max_sequence_length=},", sources)


def packing_fingerprint(
    sources: Sequence[str], sequence_length: int, *, long_doc_strategy: str = "truncate", source_group_size: int = 1
) -> str:
    """Fingerprint of a PackingInstanceSource over sources with these fingerprints."""
    settings = f"self.{sequence_length=},self.{long_doc_strategy=},self.{source_group_size=},"
    return _instance_source("PackingInstanceSource", settings, sources)


def concatenated_fingerprint(sources: Sequence[str]) -> str:
    """Fingerprint of a ConcatenatedInstanceSource over sources with these fingerprints."""
    return _instance_source("ConcatenatedInstanceSource", "", sources)


def _instance_source(class_name: str, settings: str, sources: Sequence[str]) -> str:
    digest = hashlib.sha256(f"class={class_name},{settings}".encode())
    for fingerprint in sources:
        digest.update(f"source={fingerprint},".encode())
    return digest.hexdigest()
