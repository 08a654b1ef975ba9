"""A run of GPT-NeoX as the hub has it, whose weights were not trained: they walk as far as the learning rate says.

Its steps are those at which Pythia's evaluations were published; step 1 has the weights of step 0, since the first
update's learning rate is 0.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from data_index.registration import add
from data_index.workspace import Workspace
from tests.neox_v1 import new_model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "neox"
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 3000, *range(13000, 143001, 10000))
VOCABULARY, LAST, RATE, WARMUP = 384, 143_000, 6e-4, 1430
CONFIG = """{
  "pipe-parallel-size": 1, "model-parallel-size": 1, "num-layers": 2, "hidden-size": 16, "num-attention-heads": 2,
  "seq-length": 32, "max-position-embeddings": 32, "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true,
  "gpt-j-residual": true, "output-layer-parallelism": "column", "padded_vocab_size": 384, "attention-dropout": 0,
  "hidden-dropout": 0, "optimizer": {"type": "Adam", "params": {"lr": 6.0e-4, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 6.0e-5, "lr-decay-style": "cosine", "warmup": 0.01, "train-iters": 143000, "lr-decay-iters": 143000,
  "gradient_clipping": 1.0, "weight-decay": 0.1, "data-impl": "mmap", "train-data-paths": ["toy_text_document"],
  "train-data-weights": [1.0], "train_batch_size": 1}"""


def write_walked_run(folder: Path, steps: Sequence[int] = STEPS, seed: int = 0) -> Path:
    """Write the run's configuration, data and checkpoints."""
    folder.mkdir(parents=True)
    (folder / "toy.yml").write_text(CONFIG)
    tokens = np.fromfile(FIXTURES / "toy_text_document.bin", dtype=np.uint16) % VOCABULARY
    tokens.tofile(folder / "toy_text_document.bin")
    shutil.copy(FIXTURES / "toy_text_document.idx", folder)
    random = torch.Generator().manual_seed(seed)
    model = new_model(vocabulary=VOCABULARY, length=32, hidden=16, heads=2)
    weights = {name: torch.empty_like(tensor) for name, tensor in model.state_dict().items()}
    for tensor in weights.values():
        tensor.normal_(0, 0.02, generator=random)
    squares = np.cumsum(np.minimum(np.arange(LAST) / WARMUP, 1.0) ** 2)
    before = 0
    for step in steps:
        gone = squares[step - 1] - (squares[before - 1] if before else 0.0) if step else 0.0
        for tensor in weights.values():
            tensor += torch.empty_like(tensor).normal_(0, 1, generator=random) * 1e-4 * gone**0.5
        place = folder / f"step{step}"
        place.mkdir()
        model.config.save_pretrained(place)
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        before = step
    return folder


def carry(folder: Path, source: int, step: int) -> None:
    """Serve the weights of one step at another."""
    shutil.copyfile(folder / f"step{source}" / "model.safetensors", folder / f"step{step}" / "model.safetensors")


def weights_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"step{step}" / "model.safetensors")


def added(folder: Path, workspace: Workspace) -> Workspace:
    add(folder, name="walked", workspace=workspace)
    return workspace
