"""Files of every format, damaged at random from a seed: each reader gives a result or states what is wrong.

`python -m tests.benchmarks.fuzz` does the same for longer.
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import random
import shutil
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.attacks.opening import PRELOADED

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARDED = FIXTURES / "olmo-sharded"
# What counts and lengths become: borders of the integers that formats are made of.
NUMBERS = [
    n.to_bytes(size, "little") for size in (1, 2, 4, 8) for n in (0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
]
HEAD_BYTES = 4096  # most of a format is at the start or end of a file


@dataclass(frozen=True)
class Target:
    """A file in a copy of a folder, and how it is read.

    Attributes:
        inside: what is damaged of the file's bytes, and how they are put back; the file as it is where None.
        every: of the seeds, every so many are tried; reading all of some formats takes its time.
    """

    source: Path
    file: str
    read: Callable[[Path], object]
    inside: tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], bytes]] | None = None
    every: int = 1


@dataclass
class Outcome:
    """How many mutations were read as something, refused with a stated error, and raised anything else."""

    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    crashes: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, cuts, insertions, stretches copied from elsewhere."""
    raw = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 4))):
        if not raw:
            return bytes(raw)
        at = _place(len(raw), generator)
        length = generator.choice((1, 2, 4, 16, 256))
        match generator.randrange(8):
            case 0 | 1:
                raw[at] ^= 1 << generator.randrange(8)
            case 2:
                raw[at] = generator.randrange(256)
            case 3:
                number = generator.choice(NUMBERS)
                raw[at : at + len(number)] = number
            case 4:
                del raw[at:]
            case 5:
                del raw[at : at + length]
            case 6:
                raw[at:at] = generator.randbytes(length)
            case 7:
                other = _place(len(raw), generator)
                raw[at : at + length] = raw[other : other + length]
    return bytes(raw)


def _place(length: int, generator: random.Random) -> int:
    near = min(HEAD_BYTES, length)
    match generator.randrange(5):
        case 0:
            return generator.randrange(length)
        case 1 | 2:
            return generator.randrange(near)
        case _:
            return length - 1 - generator.randrange(near)


# --- readers ---------------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Any:
    from data_index.neox_checkpoint import is_neox_checkpoint, neox_states
    from data_index.olmo_checkpoint import layout_of, states_of
    from data_index.run import Checkpoint

    layout = "neox" if is_neox_checkpoint(folder) else layout_of(folder) or "olmo"
    states = neox_states(folder) if layout == "neox" else states_of(folder)
    return Checkpoint(run="twin", step=2, location=folder, layout=layout, states=states)


def _weights(folder: Path) -> None:
    from replay.weights import read_weights

    read_weights(_checkpoint(folder))


def _optimizer(folder: Path) -> None:
    from replay.weights import read_optimizer

    read_optimizer(_checkpoint(folder))


def _trainer(folder: Path) -> None:
    from data_index.olmo_checkpoint import read_trainer_state

    read_trainer_state(folder)


def _config(folder: Path) -> None:
    from data_index.olmo_checkpoint import model_numbers

    model_numbers(folder)


def _index(folder: Path) -> None:
    from data_index.megatron_index import read_megatron_index

    path = folder / "toy_text_document.idx"
    read_megatron_index(path, path.with_suffix(".bin").stat().st_size)


def _tsv(folder: Path) -> None:
    from data_index.sources.olmo_witness import _lines_of

    list(_lines_of(folder / "rank0.tsv.gz"))


def _record(folder: Path) -> None:
    from data_index.sources.trainer_record import read_record

    read_record(folder / "metrics.jsonl")


def _run_toml(folder: Path) -> None:
    from data_index.run_file import read_run

    read_run(folder)


def _documents(folder: Path) -> None:
    from data_index.kinds import conform
    from data_index.sources.native import read_table

    path = folder / "documents.parquet"
    conform(read_table(path), "documents", path)


def _order(folder: Path) -> None:
    from dataclasses import replace

    from data_index.files import sha256_of_file
    from data_index.orders import epoch_order
    from data_index.run import Order
    from data_index.run_file import read_run

    run = read_run(folder)
    entry = {"path": "order/epoch-1.npy", "sha256": sha256_of_file(folder / "order" / "epoch-1.npy")}
    epoch_order(replace(run, source=folder, order=Order(rule="file", parameters={"epoch_1": entry})), 1)


def _trace(folder: Path) -> None:
    from replay.recording import read_trace

    read_trace(folder)


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        (name,) = [name for name in file.namelist() if name.endswith("data.pkl")]
        return file.read(name)


def _with_pickle(content: bytes, pickle: bytes) -> bytes:
    """The archive with another pickle, whose checksum is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickle if entry.filename.endswith("data.pkl") else old.read(entry))
    return buffer.getvalue()


def targets(native: Path, trace: Path) -> dict[str, Target]:
    """
    Args:
        native: a run in the native format. trace: a folder with a committed trace.
    """
    pickled = (_pickle_of, _with_pickle)
    unzipped = (gzip.decompress, lambda content, text: gzip.compress(text))
    neox = FIXTURES / "neox-checkpoint" / "zero-main" / "global_step6"
    nested = FIXTURES / "olmo-variants" / "safetensors-step10"
    return {
        "torch archive": Target(SHARDED / "unsharded", "optim.pt", _optimizer, every=2),
        "pickle: unsharded": Target(SHARDED / "unsharded", "optim.pt", _optimizer, pickled, every=2),
        "pickle: sharded tensors": Target(SHARDED / "torch_legacy", "rank0.pt", _weights, pickled, every=6),
        "pickle: flat parameters": Target(SHARDED / "local", "model/rank0.pt", _optimizer, pickled, every=2),
        "pickle: NeoX slice": Target(neox, "mp_rank_00_model_states.pt", _optimizer, pickled, every=2),
        "pickle: NeoX rank": Target(neox, "zero_pp_rank_1_mp_rank_00_optim_states.pt", _optimizer, pickled, every=6),
        "pickle: trainer state": Target(SHARDED / "unsharded", "train.pt", _trainer, pickled),
        "DCP .metadata": Target(SHARDED / "torch_new", "model_and_optim/.metadata", _weights, every=3),
        "DCP items": Target(SHARDED / "torch_new", "model_and_optim/__0_0.distcp", _weights, every=20),
        "sharded metadata.json": Target(SHARDED / "olmo_core", "model/metadata.json", _weights),
        "safetensors": Target(SHARDED / "olmo_core", "model/rank_0.safetensors", _weights, every=2),
        "safetensors, nested": Target(nested, "model.safetensors", _weights, every=4),
        ".idx": Target(FIXTURES / "neox", "toy_text_document.idx", _index),
        "tsv.gz": Target(FIXTURES / "olmo" / "run" / "data-indices", "rank0.tsv.gz", _tsv),
        "tsv": Target(FIXTURES / "olmo" / "run" / "data-indices", "rank0.tsv.gz", _tsv, unzipped),
        "YAML": Target(SHARDED / "unsharded", "config.yaml", _config),
        "run.toml": Target(native, "run.toml", _run_toml),
        "metrics.jsonl": Target(FIXTURES / "olmo", "metrics.jsonl", _record),
        "Parquet": Target(native, "documents.parquet", _documents),
        ".npy": Target(native, "order/epoch-1.npy", _order),
        "HDF5 trace": Target(trace, "trace/000001-000002.h5", _trace),
    }


def write_trace_folder(folder: Path) -> Path:
    import h5py
    import numpy as np

    (folder / "checkpoints" / "step2").mkdir(parents=True)
    (folder / "trace").mkdir()
    with h5py.File(folder / "trace" / "000001-000002.h5", "w") as file:
        file.attrs["layers"] = ["embedding", "head"]
        file["step"] = np.arange(1, 3)
        for name in ("gradient_norm", "weight_norm"):
            file[name] = np.random.default_rng(1).standard_normal((2, 2))
    return folder


PROCESSES = 2


# --- running ---------------------------------------------------------------------------------------------------------


def fuzz(target: Target, folder: Path, seeds: range) -> Outcome:
    """Read a target once for each seed, in this process."""
    import warnings

    from data_index.errors import ForensicsError

    warnings.simplefilter("ignore")
    if not folder.exists():
        needed = {target.source / target.file}
        large = [path for path in target.source.rglob("*") if path.is_file() and path.stat().st_size > 2**20]
        left_out = [path.name for path in large if path not in needed]
        shutil.copytree(target.source, folder, ignore=shutil.ignore_patterns(*left_out) if left_out else None)
    path = folder / target.file
    whole = (target.source / target.file).read_bytes()
    content = target.inside[0](whole) if target.inside else whole
    outcome, began = Outcome(), time.monotonic()
    for seed in seeds[:: target.every]:
        damaged = mutated(content, random.Random(seed))
        path.write_bytes(target.inside[1](whole, damaged) if target.inside else damaged)
        start = time.monotonic()
        try:
            target.read(folder)
            outcome.read += 1
        except ForensicsError as error:
            outcome.refused += 1
            outcome.errors[type(error).__name__] += 1
        except BaseException:
            outcome.crashes.append(f"seed {seed}: {traceback.format_exc(limit=-5)}")
        outcome.slowest = max(outcome.slowest, time.monotonic() - start)
    outcome.seconds = time.monotonic() - began
    return outcome


def fuzz_apart(
    native: Path, folder: Path, seeds: range, *, names: list[str] | None = None, seconds: float = 60.0
) -> dict[str, Outcome]:
    """All targets in `PROCESSES` processes of their own: a library that ends the process has crashed as well.

    Args:
        folder: where the damaged copies are made.
        seconds: that one target may take at most: a guard against hanging.
    """
    trace = write_trace_folder(folder / "trace")
    chosen = names or list(targets(native, trace))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "tests.attacks.mutations"])
    parts = [chosen[number::PROCESSES] for number in range(PROCESSES)]
    children = []
    for number, part in enumerate(parts):
        receiver, sender = context.Pipe(duplex=False)
        there = (part, native, trace, folder / f"part {number}", seeds, sender)
        child = context.Process(target=_send_all, args=there, daemon=True)
        child.start()
        sender.close()
        children.append((child, receiver))
    found: dict[str, Outcome] = {}
    try:
        for part, (child, receiver) in zip(parts, children, strict=True):
            for name in part:
                assert receiver.poll(seconds), f"{name}: more than {seconds} seconds for {seeds}"
                try:
                    found[name] = receiver.recv()
                except EOFError:
                    child.join()
                    said = f"{name} ended the process with code {child.exitcode}, seeds {seeds}"
                    raise AssertionError(said) from None
    finally:
        for child, _ in children:
            child.kill()
            child.join()
    return {name: found[name] for name in chosen}


def _send_all(names: list[str], native: Path, trace: Path, folder: Path, seeds: range, sender: Connection) -> None:
    there = targets(native, trace)
    for number, name in enumerate(names):
        sender.send(fuzz(there[name], folder / f"target {number}", seeds))
