"""What probes read of a checkpoint on disk over what they need, by the pages of the file that come into memory.

A model of about 300 MB in one safetensors file, at random, put out of the page cache before each measurement. Pages are
asked for with mincore, so that what the kernel reads ahead counts too.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from data_index.files import read_json_object
from data_index.run import Checkpoint
from forensics.local_measuring import measured_here
from forensics.measured_checkpoint import Computing, Task
from probes.prediction_probes import CalibrationError, MeanLoss
from probes.probe import TokenRows
from probes.spectrum_probes import MatrixSpectra
from probes.weight_probes import EmbeddingNorms, WeightNorms

VOCABULARY, HIDDEN, LAYERS = 50_304, 512, 8
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def write_model(folder: Path) -> dict[str, Any]:
    """Returns the model's config."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTNeoXForCausalLM(config).state_dict().items()}
    save_file({name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}, folder / "model.safetensors")
    config.save_pretrained(folder)
    return read_json_object(folder / "config.json")


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(path: Path) -> int:
    """Of a file, in the page cache now."""
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    found = (ctypes.c_ubyte * -(-mapped.size // PAGE_BYTES))()
    libc = ctypes.CDLL(None, use_errno=True)
    address, length = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size)
    if libc.mincore(address, length, found) != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return int((np.frombuffer(found, np.uint8) & 1).sum()) * PAGE_BYTES


def measure(what: str, folder: Path, config: Mapping[str, Any], probes: Mapping[str, Any]) -> None:
    path = folder / "model.safetensors"
    evict(path)
    before = resident_bytes(path)
    checkpoint = Checkpoint(run="made", step=1, location=folder, layout="hf", states=("weights",))
    computing = Computing(device="cpu", precision="fp32", threads=1)
    (found,) = measured_here([Task(checkpoint=checkpoint, config=config, probes=probes)], computing)
    problems = [answer.problem for answer in found.answers.values() if answer.problem]
    if problems:
        raise RuntimeError(f"{what}: {problems}")
    read = resident_bytes(path) - before
    print(
        f"{what}: {read:,} bytes of {path.stat().st_size:,} came from disk ({before:,} were in memory before), "
        f"{found.num_bytes:,} are needed: {read / found.num_bytes:.4f}"
    )


def main() -> None:
    torch.set_num_threads(1)
    rows = TokenRows(token_ids=np.random.default_rng(0).integers(0, VOCABULARY, (2, 128)))
    embeddings, spectra = {"embedding-norms": EmbeddingNorms()}, {"spectra": MatrixSpectra()}
    everything = embeddings | spectra | {"norms": WeightNorms()}
    everything |= {"loss": MeanLoss(rows=rows), "calibration": CalibrationError(rows=rows)}
    with tempfile.TemporaryDirectory() as temporary:
        config = write_model(Path(temporary))
        for _ in range(3):
            measure("embedding-norms", Path(temporary), config, embeddings)
            measure("spectra", Path(temporary), config, spectra)
            measure(f"{len(everything)} probes together", Path(temporary), config, everything)


if __name__ == "__main__":
    main()
