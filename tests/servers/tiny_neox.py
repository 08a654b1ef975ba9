"""A tiny GPT-NeoX run, really trained, as Pythia's were: data in training order, first update at rate 0, weights only.

Nothing of `replay` or of `data_index` takes part: the data and the training are written out here, by the rules of
GPT-NeoX v1.0.
"""

from __future__ import annotations

import struct
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.neox_v1 import learning_rate, new_model
from tests.servers.fake_hub import FakeHub

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

VOCABULARY, LENGTH, STEPS, ROWS = 512, 64, 64, 8
SAVED = (0, 1, 2, 4, 8, 16, 32, 48, 64)
RATE, MIN_RATE, SEED = 0.006, 0.0006, 1234
END_TOKEN = "<|endoftext|>"  # id 0, as Pythia's
MODULES = ("textwrap.py", "bisect.py", "json/decoder.py", "csv.py", "copy.py", "string.py", "shlex.py", "fractions.py")
# Bytes of document.bin at which a shard ends: between tokens, inside rows, as in the published sets.
BORDERS = (22_222, 44_444)

REPO, DATA_REPO, REPO_WITH_DATA = "tiny-lab/tiny-neox", "tiny-lab/tiny-pile-preshuffled", "tiny-lab/tiny-neox-with-data"

CONFIG = """
# The keys of Pythia's published files, sizes of a toy.
{
  "pipe-parallel-size": 1, "model-parallel-size": 1,
  "num-layers": 2, "hidden-size": 32, "num-attention-heads": 4, "seq-length": 64, "max-position-embeddings": 64,
  "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true, "gpt-j-residual": true,
  "output-layer-parallelism": "column", "padded_vocab_size": 512,
  "attention-dropout": 0, "hidden-dropout": 0,
  "optimizer": {"type": "Adam", "params": {"lr": 0.006, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.0006, "lr-decay-style": "cosine", "warmup": 0.1, "train-iters": 64, "lr-decay-iters": 64,
  "gradient_clipping": 1.0, "weight-decay": 0.1,
  "data-impl": "mmap", "data-path": "data/document", "train_batch_size": 8,
}
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TinyRun:
    """What `build_tiny_run` left behind.

    Attributes:
        folder: registers as a local run: tiny.yml, tokenizer.json, data/, step<N>/.
        checkpoints: step -> folder of config.json and model.safetensors.
        data: document.idx and the shards of document.bin, in order.
        config: what the checkpoints' config.json says.
        rows: token ids as trained on, uint16 of shape [step, row, LENGTH + 1]; step 1 is at 0.
        losses: mean loss of each step, step 1 at 0.
    """

    folder: Path
    checkpoints: dict[int, Path]
    data: tuple[Path, ...]
    tokenizer: Path
    config: dict[str, Any]
    rows: np.ndarray
    losses: tuple[float, ...]


def build_tiny_run(folder: Path) -> TinyRun:
    """Write the data, train on them, save at SAVED; seconds."""
    (folder / "data").mkdir(parents=True)
    (folder / "tiny.yml").write_text(CONFIG)
    texts = [(Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8") for name in MODULES]
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = rows_in_training_order(tokenizer, texts)
    data = write_preshuffled(folder / "data" / "document", rows)
    shaped = rows.reshape(STEPS, ROWS, LENGTH + 1)
    losses, config = train(shaped, folder)
    return TinyRun(
        folder=folder,
        checkpoints={step: folder / f"step{step}" for step in SAVED},
        data=data,
        tokenizer=folder / "tokenizer.json",
        config=config,
        rows=shaped,
        losses=losses,
    )


# --- data ------------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE; another vocabulary gives a tokenizer that reads these tokens as other text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def rows_in_training_order(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Documents end to end, cut into rows that share their border token, shuffled; uint16 [row, LENGTH + 1]."""
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer.encode(text).ids, 0]
    wanted = STEPS * ROWS
    assert len(stream) > wanted * LENGTH, f"{len(stream)} tokens do not fill {wanted} rows: name more MODULES"
    tokens = np.array(stream, dtype=np.uint16)
    rows = np.stack([tokens[row * LENGTH : (row + 1) * LENGTH + 1] for row in range(wanted)])
    return rows[np.random.RandomState(SEED).permutation(wanted)]


def write_preshuffled(prefix: Path, rows: np.ndarray) -> tuple[Path, ...]:
    """PREFIX.idx and PREFIX-0000N-of-00002.bin: one sequence and one document a row; the last shard's number is named.

    Source: EleutherAI/gpt-neox @ ea7aefd8 megatron/data/indexed_dataset.py, MMapIndexedDataset
    """
    count, row_bytes = rows.shape[0], rows.shape[1] * 2
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, count, count + 1)
    sizes = np.full(count, rows.shape[1], dtype="<i4")
    pointers = np.arange(count, dtype="<i8") * row_bytes
    index = prefix.with_name(f"{prefix.name}.idx")
    index.write_bytes(header + sizes.tobytes() + pointers.tobytes() + np.arange(count + 1, dtype="<i8").tobytes())
    content, written = rows.astype("<u2").tobytes(), [index]
    for number, (start, stop) in enumerate(pairwise((0, *BORDERS, len(content)))):
        written.append(prefix.with_name(f"{prefix.name}-{number:05d}-of-{len(BORDERS):05d}.bin"))
        written[-1].write_bytes(content[start:stop])
    return tuple(written)


# --- training --------------------------------------------------------------------------------------------------------


def train(rows: np.ndarray, folder: Path) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Train on [step, row, token], save below `folder`. Returns the losses and the model's config."""
    import torch
    import torch.nn.functional as F

    tokens, losses = torch.from_numpy(rows.astype(np.int64)), []
    with _own_randomness():
        model = new_model(vocabulary=VOCABULARY, length=LENGTH, hidden=32, heads=4, end_token=0)
        optimizer = torch.optim.AdamW(parameter_groups(model), lr=0.0, betas=(0.9, 0.95), eps=1e-8)
        for step in range(STEPS + 1):
            if step > 0:
                batch = tokens[step - 1]
                logits = model(input_ids=batch[:, :-1]).logits.float()
                loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step - 1, steps=STEPS, rate=RATE, min_rate=MIN_RATE)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            if step in SAVED:
                model.save_pretrained(folder / f"step{step}")
    return tuple(losses), model.config.to_dict()


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Biases and layer norms without weight decay, all else with it."""
    named = dict(model.named_parameters())
    exempt = [name for name in named if name.endswith("bias") or "norm" in name]
    return [
        {"params": [parameter for name, parameter in named.items() if name not in exempt], "weight_decay": 0.1},
        {"params": [named[name] for name in exempt], "weight_decay": 0.0},
    ]


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The same seed at every call, one thread, and the process's own randomness as it was."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)


# --- publishing ------------------------------------------------------------------------------------------------------


def publish(hub: FakeHub, tiny: TinyRun, repo: str = REPO, data_repo: str | None = DATA_REPO) -> None:
    """Revisions step0, step1 …, main with the last one's files; the data in a dataset repository of their own.

    Args:
        data_repo: None lays the data into the model's main revision instead.
    """
    data = {path.name: path.read_bytes() for path in tiny.data}
    tokenizer = {"tokenizer.json": tiny.tokenizer.read_bytes()}
    files = {
        step: tokenizer | {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        for step, folder in tiny.checkpoints.items()
    }
    main = files[max(files)] | {"README.md": f"# {repo}\n".encode()}
    revisions = {"main": main | ({} if data_repo else data)}
    hub.add_repo(repo, revisions | {f"step{step}": files[step] for step in sorted(files)})
    if data_repo:
        hub.add_repo(data_repo, {"main": data | {"README.md": f"# {data_repo}\n".encode()}}, kind="dataset")
