"""Runs in which faults are planted, with one witness each, and what `add` says of them.

A subject is a run as a trainer leaves it. Of its witnesses all but one are taken away, then a fault is planted, then it
is added. What it then gives as batches is compared with the batches of the whole run: a fault that changes no token of
any step is none.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_index.errors import ForensicsError
from data_index.instances.documents import documents_of
from data_index.instances.packed import pack
from data_index.instances.packing_cache import KINDS
from data_index.orders import epoch_order
from data_index.registration import add
from data_index.run import Run
from data_index.tokens import TokenReader
from data_index.witness import sha256_of_ids
from data_index.workspace import Workspace
from forensics.adding import prove_by_loss
from tests.attacks import faults as plant
from tests.attacks.faults import Fault

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Large, and never damaged: linked, not copied.
WEIGHTS = ("*.distcp", "model.pt", "optim.pt", "*.safetensors")
NO_WITNESS, LOSS = "none", "logged loss"
TOKEN_RECORD, INSTANCE_RECORD = "record of token ids", "record of instances"

Batches = dict[int, str]  # step -> sha256 of its token ids
Keep = Callable[[Path, str], None]
Outcome = Literal["refused", "harmless", "derived", "exact"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """
    Attributes:
        write: makes the folder of the run with all witnesses.
        keep: takes all witnesses away but the named one.
        source: what is added, below the folder.
        data: where its token files are, below the folder.
        given_record: the record of its batches is written here, and given with --metrics.
    """

    write: Callable[[Path], None]
    keep: Keep
    source: str
    witnesses: tuple[str, ...]
    faults: Mapping[str, Fault]
    told: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    given_record: bool = False

    def add(self, folder: Path, witness: str, workspace: Workspace) -> Run:
        record = folder / "given.jsonl"
        return add(
            folder / self.source,
            name="run",
            data=folder / self.data if self.data else None,
            metrics=record if record.exists() else None,
            workspace=workspace,
            prove=prove_by_loss if witness == LOSS else None,
            **self.told,
        )


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What became of a fault. `wrong` are the steps whose batches are not the run's."""

    outcome: Outcome
    wrong: tuple[int, ...] = ()
    said: str = ""
    missing: str = ""


def batches_of(run: Run) -> Batches:
    reader = TokenReader(run, None)
    orders = {epoch: epoch_order(run, epoch) for epoch in run.epochs}
    found = {}
    for first, last, _ in run.kept_steps():
        for step in range(first, last + 1):
            segment = run.segment_of_step(step)
            found[step] = sha256_of_ids(reader.rows(orders[segment.epoch][segment.positions_of_step(step)]))
    return found


def template(subject: Subject, witness: str, folder: Path, truth: Batches | None = None) -> Batches:
    """Write the run with one witness, and return the batches of the whole one; without a fault it is added."""
    subject.write(folder)
    recorded = witness in (TOKEN_RECORD, INSTANCE_RECORD) and subject.given_record
    if truth is None or recorded:
        with tempfile.TemporaryDirectory() as place:
            whole = subject.add(folder, "all", Workspace(Path(place) / "w"))
            truth = batches_of(whole)
            if recorded:
                write_record(whole, folder / "given.jsonl", with_tokens=witness == TOKEN_RECORD)
    subject.keep(folder, witness)
    clean = plant_and_add(subject, witness, folder, truth, lambda f, c: True, random.Random(0))
    assert clean is not None and clean.outcome == "harmless", (witness, clean)
    return truth


def plant_and_add(
    subject: Subject, witness: str, made: Path, truth: Batches, fault: Fault, chance: random.Random
) -> Planted | None:
    """None where there is nothing to plant."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(made, Path(place) / "run", symlinks=True))
        if fault(folder, chance) is False:
            return None
        try:
            run = subject.add(folder, witness, Workspace(Path(place) / "w"))
            batches = batches_of(run)
        except ForensicsError as error:
            return Planted(outcome="refused", said=f"{type(error).__name__}: {error}")
        wrong = tuple(step for step, ids in batches.items() if truth.get(step) != ids)
        if not wrong:
            return Planted(outcome="harmless")
        exact = any(run.trust.of_steps(step, step).level == "exact" for step in wrong)
        return Planted(outcome="exact" if exact else "derived", wrong=wrong, missing=run.trust.missing)


# --- witnesses -------------------------------------------------------------------------------------------------------


def copied(source: Path, target: Path) -> None:
    """A copy in which weights are links."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*WEIGHTS))
    for pattern in WEIGHTS:
        for path in source.rglob(pattern):
            os.symlink(path, target / path.relative_to(source))


def write_record(run: Run, path: Path, *, with_tokens: bool) -> None:
    """What the trainer would have recorded."""
    reader, lines = TokenReader(run, None), []
    for first, last, _ in run.kept_steps():
        for step in range(first, last + 1):
            segment = run.segment_of_step(step)
            instances = epoch_order(run, segment.epoch)[segment.positions_of_step(step)].astype(np.int64)
            ids = {"input_ids_i64_sha256": sha256_of_ids(reader.rows(instances))} if with_tokens else {}
            lines.append({"step": step, "kind": "batch", "index": instances.tolist()} | ids)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    kept = [wanted(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in kept if line is not None))


def write_provenance(folder: Path, end_token: int) -> None:
    for path in folder.glob("*.npy"):
        documents = documents_of(np.fromfile(path, "<u2"), end_token, to_the_end=True).tolist()
        rows = "".join(f"{a},{b},doc-{n},text.jsonl.gz,{n + 1}\n" for n, (a, b) in enumerate(documents))
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(rows.encode()))


# --- OLMo-core -------------------------------------------------------------------------------------------------------

CONFIGS = "main/ckpt/step*/config.json"


def _write_core(name: str, folder: Path) -> None:
    shutil.copytree(FIXTURES / "olmo-core" / "data", folder / "data")
    copied(FIXTURES / "olmo-core" / name, folder / "main")


def _keep_core(folder: Path, witness: str) -> None:
    run = folder / "main"

    def line(record: dict[str, Any]) -> dict[str, Any] | None:
        if record["kind"] == "batch" and witness in (TOKEN_RECORD, INSTANCE_RECORD):
            hashed = witness == TOKEN_RECORD
            return {k: v for k, v in record.items() if hashed or k != "input_ids_i64_sha256"}
        return record if record["kind"] == "metrics" and witness == LOSS else None

    if witness == "all":
        return
    keep_lines(run / "metrics.jsonl", line)
    if witness != "global indices":
        shutil.rmtree(run / "work", ignore_errors=True)
    if witness != "dataset fingerprint, loader state":
        for path in run.glob("ckpt/step*/train/rank0.pt"):
            path.unlink()
    if witness == "provenance":
        write_provenance(folder / "data", 0)


def _swap_core_paths(folder: Path, chance: random.Random) -> bool:
    for path in folder.glob("main/ckpt/step*/data_paths.txt"):
        path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")
    return plant.in_json(CONFIGS, plant.field("dataset.paths", lambda paths, c: paths[::-1]))(folder, chance) is True


def core(name: str) -> Subject:
    config = {
        "seed": plant.field("data_loader.seed", plant.other_number),
        "batch size": plant.field("data_loader.global_batch_size", plant.half_or_double),
        "sequence length": plant.field("dataset.sequence_length", lambda value, c: value // 2),
        "dtype": plant.field("dataset.dtype", lambda value, c: c.choice(("uint8", "uint32", "int16"))),
        "duration": plant.field("trainer.max_duration.value", lambda value, c: value - c.randrange(1, 20)),
        "file permutation": plant.field("dataset.source_permutation_seed", plant.other_number),
    }
    return Subject(
        write=lambda folder: _write_core(name, folder),
        keep=_keep_core,
        source="main",
        witnesses=(
            NO_WITNESS,
            TOKEN_RECORD,
            INSTANCE_RECORD,
            "global indices",
            "dataset fingerprint, loader state",
            "provenance",
            LOSS,
        ),
        faults=plant.named("token file", plant.token_faults("data/part-*.npy", "<u2", 128))
        | {f"config: {what}": plant.in_json(CONFIGS, change) for what, change in config.items()}
        | {"config: file order": _swap_core_paths}
        | {
            "loader state: epoch": plant.in_state(
                "main/ckpt/step*/train/rank0.pt", lambda s, c: s["data_loader"].update(epoch=2)
            ),
            "loader state: position": plant.in_state(
                "main/ckpt/step*/train/rank0.pt", lambda s, c: s["data_loader"].update(tokens_processed=1024)
            ),
        }
        | plant.named("order file", plant.number_faults("main/work/*.npy", "<u4"))
        | plant.named("record", plant.line_faults("main/metrics.jsonl", plant.batch_altered))
        | plant.named("provenance", plant.line_faults("data/*.csv.gz", plant.border_moved)),
    )


# --- OLMo-core, packed and padded ------------------------------------------------------------------------------------

PARTS = [f"data/part-0{number}-00000.npy" for number in range(3)]


def _write_pieces(kind: str, folder: Path) -> None:
    from data_index.instances.packed import group_documents

    shutil.copytree(FIXTURES / "olmo-core" / "data", folder / "data")
    tokenizer = {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1}
    dataset = {"_CLASS_": f"olmo_core.data.{kind}Config", "paths": PARTS, "dtype": "uint16", "tokenizer": tokenizer}
    config = {
        "dataset": dataset | {"sequence_length": 128},
        "data_loader": {"global_batch_size": 1024, "seed": 34521, "_CLASS_": "olmo_core.data.NumpyDataLoaderConfig"},
        "trainer": {"max_duration": {"value": 2, "unit": "epochs"}},
    }
    (folder / "main" / "work").mkdir(parents=True)
    (folder / "main" / "config.json").write_text(json.dumps(config))
    for number, part in enumerate(PARTS if "Packed" in kind else []):
        tokens = np.fromfile(folder / part, "<u2")
        documents = group_documents(
            [documents_of(tokens, 0)], [len(tokens)], sequence_length=128, long_doc_strategy="truncate"
        )
        packing = pack(documents, 128)
        offsets = np.stack([packing.first[:-1], packing.first[1:]], axis=1)
        for what, array in zip(KINDS, (packing.documents, offsets, packing.packed), strict=True):
            array.astype("<u8").tofile(folder / "main" / "work" / f"{what}-128-{number}.npy")


def _keep_pieces(folder: Path, witness: str) -> None:
    if witness not in ("packing cache", "all"):
        shutil.rmtree(folder / "main" / "work")
    if witness == "provenance":
        write_provenance(folder / "data", 0)


def in_pieces(kind: str) -> Subject:
    config = {
        "seed": plant.field("data_loader.seed", plant.other_number),
        "batch size": plant.field("data_loader.global_batch_size", plant.half_or_double),
        "sequence length": plant.field("dataset.sequence_length", lambda value, c: value // 2),
        "file order": plant.field("dataset.paths", plant.shuffled),
        "end token": plant.field("dataset.tokenizer.eos_token_id", lambda value, c: c.randrange(2, 384)),
    }
    cache = ("packing cache",) if "Packed" in kind else ()
    return Subject(
        write=lambda folder: _write_pieces(kind, folder),
        keep=_keep_pieces,
        source="main",
        witnesses=(NO_WITNESS, *cache, TOKEN_RECORD, INSTANCE_RECORD, "provenance"),
        faults=plant.named("token file", plant.token_faults("data/part-*.npy", "<u2", 128))
        | {f"config: {what}": plant.in_json("main/config.json", change) for what, change in config.items()}
        | plant.named("packing cache", plant.number_faults("main/work/*.npy", "<u8"))
        | plant.named("record", plant.line_faults("given.jsonl", plant.batch_altered)),
        given_record=True,
    )


# --- OLMo ------------------------------------------------------------------------------------------------------------

OLMO_CONFIGS, OLMO_STATES = "olmo/run/step*/config.yaml", "olmo/run/step*/train.pt"


def _keep_olmo(folder: Path, witness: str) -> None:
    run = folder / "olmo"

    def line(record: dict[str, Any]) -> dict[str, Any] | None:
        if witness == INSTANCE_RECORD:
            return {k: record[k] for k in ("step", "indices")}
        return {k: v for k, v in record.items() if k != "indices"} if witness == LOSS else None

    if witness == "all":
        return
    keep_lines(run / "metrics.jsonl", line)
    for what, path in {"per-rank indices": "run/data-indices", "global indices": "run/train_data"}.items():
        if witness != what:
            shutil.rmtree(run / path)
    if witness != "loader position":
        for path in folder.glob(OLMO_STATES):
            path.unlink()


def olmo() -> Subject:
    config = {
        "seed": plant.field("seed", plant.other_number),
        "epoch": plant.field("epoch", lambda value, c: 1),
        "batch size": plant.field("global_train_batch_size", plant.half_or_double),
        "sequence length": plant.field("model.max_sequence_length", lambda value, c: value // 2),
        "dtype": plant.field("data.memmap_dtype", lambda value, c: c.choice(("uint8", "uint32"))),
        "file order": plant.field("data.paths", plant.shuffled),
        "drop_last": plant.field("data.drop_last", lambda value, c: False),
    }

    def state(name: str, change: Callable[[Any], Any]) -> Fault:
        return plant.in_state(OLMO_STATES, lambda s, c: s.update({name: change(s.get(name) or 0)}))

    return Subject(
        write=lambda folder: copied(FIXTURES / "olmo", folder / "olmo"),
        keep=_keep_olmo,
        source="olmo",
        witnesses=(NO_WITNESS, INSTANCE_RECORD, "per-rank indices", "global indices", "loader position", LOSS),
        faults=plant.named("token file", plant.token_faults("olmo/data/part-*.npy", "<u2", 128))
        | {f"config: {what}": plant.in_yaml(OLMO_CONFIGS, change) for what, change in config.items()}
        | {
            "loader state: world size": state("world_size", lambda value: 4),
            "loader state: epoch": state("epoch", lambda value: 1),
            "loader state: position": state("global_train_examples_seen_this_epoch", lambda value: value + 8),
        }
        | plant.named("order file", plant.number_faults("olmo/run/train_data/*.npy", "<u4"))
        | plant.named("per-rank indices", plant.line_faults("olmo/run/data-indices/*.gz", plant.numbers_swapped))
        | plant.named("record", plant.line_faults("olmo/metrics.jsonl", plant.batch_altered)),
    )


# --- native ----------------------------------------------------------------------------------------------------------


def native(trained: Path) -> Subject:
    """
    Args:
        trained: the folder of a run in the native format, with two epochs.
    """

    def keep(folder: Path, witness: str) -> None:
        run = folder / "run"
        if witness == "all":
            return
        if witness != TOKEN_RECORD:
            shutil.rmtree(run / "consumed")
        if witness != LOSS:
            shutil.rmtree(run / "metrics")
        if witness != "stated hashes":
            plant.in_toml("run/run.toml", lambda table, c: [f.pop("sha256", None) for f in table["files"]])(
                folder, random.Random(0)
            )

    config = {
        "first position": plant.field("segments.0.first_position", lambda value, c: 8),
        "batch size": plant.field("segments.0.instances_per_batch", lambda value, c: value // 2),
        "epoch": plant.field("segments.0.epoch", lambda value, c: 2),
        "steps": plant.field("segments.0.num_steps", lambda value, c: value - 1),
        "sequence length": plant.field("sequence_length", lambda value, c: value // 2),
        "dtype": plant.field("files.0.dtype", lambda value, c: "uint8"),
        "order of epochs": lambda table, c: _swap(table["order"]["parameters"], "epoch_1", "epoch_2"),
        "paths of files": lambda table, c: _swap_in(table["files"], "path"),
        "trust": plant.field("trust.level", lambda value, c: "exact"),
    }
    return Subject(
        write=lambda folder: copied(trained, folder / "run"),
        keep=keep,
        source="run",
        witnesses=(NO_WITNESS, TOKEN_RECORD, "stated hashes", LOSS),
        faults=plant.named("token file", plant.token_faults("run/tokens/*.bin", "<u2", 64))
        | {f"run.toml: {what}": plant.in_toml("run/run.toml", change) for what, change in config.items()}
        | plant.named("order file", plant.number_faults("run/order/*.npy", "", header=True)),
    )


def _swap(table: dict[str, Any], one: str, other: str) -> None:
    table[one], table[other] = table[other], table[one]


def _swap_in(rows: list[dict[str, Any]], key: str) -> None:
    rows[0][key], rows[-1][key] = rows[-1][key], rows[0][key]


# --- Megatron's and LLM360's -----------------------------------------------------------------------------------------


def _write_megatron(name: str, folder: Path) -> None:
    shutil.copytree(FIXTURES / name, folder / "run")
    shutil.copytree(FIXTURES / "neox", folder / "run" / "data")


def megatron(name: str, config: str, batch: str) -> Subject:
    changes = {
        "seed": plant.field("seed", plant.other_number),
        "batch size": plant.field(batch, lambda value, c: value - c.randrange(1, 4)),
        "sequence length": plant.field(
            "seq-length" if name == "neox-run" else "seq_length", lambda value, c: value // 2
        ),
        "split": plant.field("split", lambda value, c: c.choice(("900,100,0", "8,1,1", "1,1,0"))),
        "file": plant.field(
            "data-path" if name == "neox-run" else "data_path", lambda value, c: "data/toyb_text_document"
        ),
    }
    return Subject(
        write=lambda folder: _write_megatron(name, folder),
        keep=lambda folder, witness: None,
        source="run",
        witnesses=(NO_WITNESS, TOKEN_RECORD, INSTANCE_RECORD),
        faults=plant.named("token file", plant.token_faults("run/data/toy_text_document.bin", "<u2", 33))
        | plant.named("index", plant.byte_faults("run/data/toy_text_document.idx"))
        | {f"config: {what}": plant.in_yaml(f"run/{config}", change) for what, change in changes.items()}
        | plant.named("record", plant.line_faults("given.jsonl", plant.batch_altered)),
        given_record=True,
    )


def _write_lines(pattern: str, folder: Path) -> None:
    (folder / "run").mkdir(parents=True)
    for chunk in (0, 1):
        rows = [{"token_ids": [chunk, line, 7, line * chunk], "source": "c4", "subset_name": "x"} for line in range(33)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "run" / pattern.format(chunk)).write_text(text)


def lines(layout: str, pattern: str, told: Mapping[str, Any]) -> Subject:
    def altered(line: str, chance: random.Random) -> str:
        row = json.loads(line)
        row["token_ids"][chance.randrange(4)] += 1
        return json.dumps(row)

    return Subject(
        write=lambda folder: _write_lines(pattern, folder),
        keep=lambda folder, witness: None,
        source="run",
        witnesses=(NO_WITNESS, TOKEN_RECORD),
        faults=plant.named("token file", plant.line_faults("run/*.jsonl", altered))
        | plant.named("token file", plant.byte_faults("run/*.jsonl"))
        | plant.named("record", plant.line_faults("given.jsonl", plant.batch_altered)),
        told={"layout": layout, "settings": dict(told)},
        given_record=True,
    )


def subjects(trained: Path) -> dict[str, Subject]:
    return {
        "OLMo-core": core("main"),
        "OLMo-core, skip step": core("skipstep"),
        "OLMo-core, packed": in_pieces("NumpyPackedFSLDataset"),
        "OLMo-core, padded": in_pieces("NumpyPaddedFSLDataset"),
        "OLMo": olmo(),
        "native": native(trained),
        "GPT-NeoX": megatron("neox-run", "toy.yml", "train_batch_size"),
        "Megatron-DeepSpeed": megatron("bloom-run", "megatron.yml", "global_batch_size"),
        "Amber": lines("amber", "train_{:03d}.jsonl", {"instances_per_batch": 10, "world_size": 5, "restarts": "0"}),
    }
