"""Run folders of every layout that lie about counts, name what is no file, or hold bombs are refused."""

import gzip
import io
import json
import os
import shutil
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import require_file
from data_index.registration import add
from data_index.store import connect
from data_index.workspace import Workspace
from tests.attacks.no_files import NO_FILES, Change, fifo, folder_instead, hole, link_to
from tests.attacks.opening import Twin, assert_refused, open_twins

FIXTURES = Path(__file__).parents[1] / "fixtures"
NEOX = FIXTURES / "neox"
HUGE = 10**15


# --- the native format -----------------------------------------------------------------------------------------------


def in_toml(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / "run.toml").read_text()
        assert old in text, old
        (folder / "run.toml").write_text(text.replace(old, new, 1))

    return change


def toml(content: str) -> Change:
    return lambda folder: (folder / "run.toml").write_text(content)


def order(rule: str, **parameters: Any) -> Change:
    """Another order rule, with whatever parameters; the record of consumed batches would contradict it first."""

    def change(folder: Path) -> None:
        import tomllib

        import tomli_w

        table = tomllib.loads((folder / "run.toml").read_text())
        table["order"] = {"rule": rule, "parameters": parameters}
        (folder / "run.toml").write_text(tomli_w.dumps(table))
        shutil.rmtree(folder / "consumed")

    return change


def at(file: str, change: Change) -> Change:
    return lambda folder: change(folder / file)


def metrics_of(file: str) -> Change:
    """A table in place of the first piece of metrics."""
    return lambda folder: shutil.copy(folder / file, next((folder / "metrics").iterdir()))


def many_rows(folder: Path) -> None:
    """A column of 600 million equal values, which takes some hundred bytes."""
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(600_000_000)}), folder / "documents.parquet")


MEGATRON = {
    "num_tokens": HUGE, "sequence_length": 64, "seed": 1, "num_epochs": 1, "separate_last_epoch": False,
    "len_is_one_short": True, "first_sequence": 0, "num_sequences": HUGE, "first_instance": 0,
}  # fmt: skip
AMBER = {"process_starts": [0], "world_size": 8, "rows_per_rank": 1, "lines_per_chunk": 8}

NATIVE: dict[str, tuple[Change, str]] = {
    "no toml": (toml("\x00"), "run.toml"),
    "lists in lists": (toml("a = " + "[" * 50_000), "run.toml"),
    "a key of many parts": (toml("a" + ".a" * 500_000 + " = 1"), "run.toml"),
    "a number of many digits": (toml("a = " + "9" * 100_000), "run.toml"),
    "a hole as run.toml": (at("run.toml", hole), "run.toml"),
    "a name to escape": (in_toml('path = "tokens/', 'path = "../../../../../../../etc/passwd#'), "passwd"),
    "tokens of a pipe": (lambda folder: fifo(next((folder / "tokens").iterdir())), "tokens/"),
    "tokens of zeros": (lambda folder: link_to("/dev/zero")(next((folder / "tokens").iterdir())), "tokens/"),
    "tokens from /dev/zero": (in_toml('path = "tokens/text-0.bin"', 'path = "/dev/zero"'), "/dev/zero"),
    "tokens of a hole": (lambda folder: hole(next((folder / "tokens").iterdir())), "tokens/"),
    "a tokenizer of a pipe": (at("tokenizer.json", fifo), ""),
    "objects as tokens": (in_toml('dtype = "uint16"', 'dtype = "object"'), "run.toml"),
    "instances beyond the file": (in_toml("num_bytes = ", f"num_bytes = {HUGE}"), "run.toml"),
    "segments beyond the order": (in_toml("num_steps = 14", f"num_steps = {HUGE}"), "order"),
    "segments beyond 64 bits": (in_toml("num_steps = 14", f"num_steps = {2**70}"), "run.toml"),
    "a number as the name": (in_toml('name = "tiny"', "name = 3"), "run.toml"),
    "threads without end": (in_toml("num_threads = 1", f"num_threads = {10**9}"), "run.toml"),
    "its own parent": (in_toml("[trust]", '[parent]\nrun = "twin"\nstep = 5\n\n[trust]'), "descends from itself"),
    "an order of zeros": (at("order/epoch-1.npy", link_to("/dev/zero")), "epoch-1.npy"),
    "an order of a pipe": (at("order/epoch-1.npy", fifo), "epoch-1.npy"),
    "an unknown rule": (order("../../evil"), "evil"),
    "ranks without end": (order("olmo", seed=1, drop_last=False, world_size=HUGE), "cannot be"),
    "a seed below zero": (order("olmo", seed=-5, drop_last=False, world_size=1), "cannot be"),
    "sources without end": (
        order("olmo_core_composable", seed=1, source_sizes=[HUGE], chunk_size=1, sources_per_epoch=-1), "cannot be"),
    "chunks without end": (order("amber", chunks=[10**9], chunk_sizes=[8], **AMBER), "cannot be"),
    "lines without end": (order("amber", chunks=[0], chunk_sizes=[HUGE], **AMBER), "cannot be"),
    "samples without end": (
        order("megatron", datasets=[MEGATRON], weights=[1.0], num_positions=8, rows_per_loader_batch=8), "cannot be"),
    "no parameters": (order("megatron"), "cannot be"),
    "documents that are no parquet": (at("documents.parquet", lambda path: path.write_bytes(b"PAR1" * 9)), "documents"),
    "documents of zeros": (at("documents.parquet", link_to("/dev/zero")), "documents.parquet"),
    "documents of a pipe": (at("documents.parquet", fifo), "documents.parquet"),
    "documents of a folder": (at("documents.parquet", folder_instead), "documents.parquet"),
    "equal values without end": (many_rows, "documents.parquet claims 600,000,000 rows"),
    "metrics that are documents": (metrics_of("documents.parquet"), "metrics"),
    "a state in lists": (at("checkpoints/step5/state.json", lambda path: path.write_text("[" * 100_000)), "state.json"),
    "a state that is no object": (at("checkpoints/step5/state.json", lambda path: path.write_text("3")), "state.json"),
    "a state of a pipe": (at("checkpoints/step5/state.json", fifo), "state.json"),
    "weights of a pipe": (at("checkpoints/step5/model.safetensors", fifo), "model.safetensors"),
    "moments of zeros": (at("checkpoints/step5/optimizer.safetensors", link_to("/dev/zero")), "optimizer.safetensors"),
    "a step of 40 digits": (lambda folder: (folder / "checkpoints" / f"step{10**40}").mkdir(), ""),
}  # fmt: skip
OPEN = ("a step of 40 digits", "a tokenizer of a pipe")


def test_what_was_not_changed_opens(tiny_source: Path, olmo: Path, core: Path, tmp_path: Path) -> None:
    """Else nothing that is refused below says anything. (The published runs are here without some of their weights.)"""
    amber = tmp_path / "amber"
    amber.mkdir()
    (amber / "train_0.jsonl").write_bytes(LINE * 2240)
    copies = [Path(shutil.copytree(source, tmp_path / source.parent.name)) for source in (tiny_source, olmo, core)]
    folders = [copies[0], copies[1] / "run", copies[2] / "main", amber]
    folders += [megatron(kind, tmp_path / kind) / kind for kind in ("neox", "bloom")]
    twins = [Twin(name=str(folder), folder=folder, kind="run", says="", opens=True) for folder in folders]
    for twin, opened in zip(twins, open_twins(twins).values(), strict=True):
        said = " ".join(text for door, text in opened.refusals.items() if door in ("add", "batch", "checkpoints"))
        assert not said.strip() and not opened.crashes and not opened.noted, (twin, opened)


def test_native_runs(tiny_source: Path, tmp_path: Path) -> None:
    twins = []
    for number, (name, (change, says)) in enumerate(NATIVE.items()):
        folder = Path(shutil.copytree(tiny_source, tmp_path / f"{number}"))
        change(folder)
        twins.append(Twin(name=name, folder=folder, kind="run", says=says, opens=name in OPEN))

    assert_refused(twins)


MODELS = {
    "layers without end": ("num_hidden_layers = 2", f"num_hidden_layers = {10**9}"),
    "many layers": ("num_hidden_layers = 2", "num_hidden_layers = 4000"),
    "a width of terabytes": ("hidden_size = 32", f"hidden_size = {2**40}"),
    "a wide model": ("hidden_size = 32", f"hidden_size = {2**14}"),
    "a vocabulary of terabytes": ("vocab_size = 384", f"vocab_size = {2**50}"),
    "a width of text": ("hidden_size = 32", 'hidden_size = "32"'),
    "no heads": ("num_attention_heads = 2", "num_attention_heads = 0"),
    "another class": ('model_type = "olmo2"', 'model_type = "../evil"'),
}


def test_replays_do_not_build_what_a_config_claims(tiny_source: Path, tmp_path: Path) -> None:
    twins = []
    for name, change in MODELS.items():
        folder = Path(shutil.copytree(tiny_source, tmp_path / name))
        in_toml(*change)(folder)
        twins.append(Twin(name=name, folder=folder, kind="replayed run", says="model"))

    assert_refused(twins)


# --- the OLMo trainers -----------------------------------------------------------------------------------------------


def in_config(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the config of every checkpoint."""

    def rewrite(folder: Path) -> None:
        for path in folder.rglob("config.yaml"):
            config = yaml.safe_load(path.read_bytes())
            change(config)
            path.write_text(yaml.safe_dump(config))
        for path in folder.rglob("config.json"):
            config = json.loads(path.read_bytes())
            change(config)
            path.write_text(json.dumps(config))

    return rewrite


def updated(section: str, **fields: Any) -> Change:
    return in_config(lambda config: (config[section] if section else config).update(fields))


def indices(content: bytes) -> Change:
    return lambda folder: (folder / "data-indices" / "rank0.tsv.gz").write_bytes(content)


def record(*lines: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "metrics.jsonl").write_text("\n".join(lines))

    return change


RECORDS: dict[str, tuple[Change, str]] = {
    "a line in lists": (record("[" * 100_000), "metrics.jsonl"),
    "a line of 65 MB": (record('{"step": 1, "a": "' + "x" * 65 * 2**20 + '"}'), "metrics.jsonl"),
    "a step of many digits": (record('{"step": 1e400}'), "metrics.jsonl"),
    "a step beyond 64 bits": (record(f'{{"step": {2**70}, "loss": 1}}'), "metrics"),
    "a loss beyond floats": (record(f'{{"step": 1, "loss": {10**400}}}'), "metrics.jsonl"),
    "a loss in hex beyond floats": (record('{"step": 1, "loss": 1, "hex": {"loss": "0x1p99999"}}'), "metrics.jsonl"),
    "hex that is a list": (record('{"step": 1, "loss": 1, "hex": [1]}'), ""),
    "an instance beyond 64 bits": (record(f'{{"step": 1, "kind": "batch", "index": [{2**70}]}}'), "consumed"),
    "no text": (lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe"), "metrics.jsonl"),
}
ABSOLUTE = {  # tokens are read from where a config says; what is no file is not
    "/dev/zero": "/dev/zero", "/dev/urandom": "/dev/urandom", "/proc/self/mem": "/proc/self/mem", "a folder": "/etc",
    "a long name": "x" * 300, "a path of 2000 parts": "a/" * 2000, "a null": "a\0b", "nothing": "",
}  # fmt: skip
OLMO: dict[str, tuple[Change, str]] = {
    **{f"tokens from {what}": (updated("data", paths=[path] * 3), "") for what, path in ABSOLUTE.items()},
    "parents": (updated("data", paths=["../" * 30 + "etc/passwd"] * 3), ""),
    "objects as tokens": (updated("data", memmap_dtype="object"), "object"),
    "records as tokens": (updated("data", memmap_dtype="O,i8"), "dtype"),
    "a batch of nothing": (updated("", global_train_batch_size=0), "config.yaml"),
    "a batch without end": (updated("", global_train_batch_size=HUGE), ""),
    "epochs without end": (updated("", max_duration=f"{HUGE}ep", stop_at=None), "times"),
    "tokens without end": (updated("", max_duration="1e300T", stop_at=None), "times"),
    "an infinite duration": (updated("", max_duration="1e999T", stop_at=None), "config.yaml"),
    "a seed below zero": (updated("data", seed=-5), ""),
    "bytes": (updated("model", note=b"\x00\x01"), "config"),
    "a surrogate": (in_config(lambda config: config["model"].update(note="\ud800")), "config"),
    "unpacks to a line of gigabytes": (indices(gzip.compress(bytes(2**28))), "rank0.tsv.gz"),
    "unpacks to numbers without end": (indices(gzip.compress(b"1\t1\n" * 2**21)), "rank0.tsv.gz"),
    "numbers beyond 64 bits": (indices(gzip.compress(f"1\t{2**70}\n".encode())), "rank0.tsv.gz"),
    "a number of many digits": (indices(gzip.compress(b"1\t" + b"9" * 5000)), "rank0.tsv.gz"),
    "half a gzip": (indices(gzip.compress(b"1\t1\n")[:-9]), "rank0.tsv.gz"),
    **{
        f"indices of {name}": (at("data-indices/rank0.tsv.gz", change), "rank0.tsv.gz")
        for name, change in NO_FILES.items()
    },
    "an order that is a hole": (at("train_data/global_indices.npy", hole), "global_indices.npy"),
    **{name: change for name, change in RECORDS.items()},
}  # fmt: skip


@pytest.fixture(scope="session")
def olmo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published run, without what only its weights need."""
    folder = tmp_path_factory.mktemp("olmo") / "published"
    left_out = shutil.ignore_patterns("optim.pt", "step20-unsharded", "step10-unsharded", "metrics.jsonl")
    shutil.copytree(FIXTURES / "olmo", folder, ignore=left_out)
    return folder


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core") / "published"
    for part in ("data", "main/work"):
        shutil.copytree(FIXTURES / "olmo-core" / part, folder / part)
    shutil.copytree(
        FIXTURES / "olmo-core" / "main" / "ckpt" / "step10",
        folder / "main" / "ckpt" / "step10",
        ignore=shutil.ignore_patterns("*.distcp"),
    )
    return folder


def copied(source: Path, run: str, changes: dict[str, tuple[Change, str]], tmp_path: Path) -> list[Twin]:
    twins = []
    for number, (name, (change, says)) in enumerate(changes.items()):
        whole = Path(shutil.copytree(source, tmp_path / f"{number}"))
        change(whole / run)
        twins.append(Twin(name=name, folder=whole / run, kind="run", says=says, opens=not says))
    return twins


def test_runs_of_the_legacy_olmo_trainer(olmo: Path, tmp_path: Path) -> None:
    assert_refused(copied(olmo, "run", OLMO, tmp_path))


def dataset(**fields: Any) -> Change:
    return updated("dataset", **fields)


def duration(value: Any, unit: str) -> Change:
    return updated("trainer", max_duration={"value": value, "unit": unit}, hard_stop=None)


def listing(content: bytes) -> Change:
    return at("ckpt/step10/data_paths.txt", lambda path: path.write_bytes(content))


PACKED = {"_CLASS_": "olmo_core.data.NumpyPackedFSLDatasetConfig"}
PADDED = {"_CLASS_": "olmo_core.data.NumpyPaddedFSLDatasetConfig"}
INDICES = "work/global_indices_dataset_size213_epoch1_seed34521_v1.npy"
CORE: dict[str, tuple[Change, str]] = {
    **{f"tokens from {what}": (listing(path.encode() + b"\n"), "") for what, path in ABSOLUTE.items()},
    "objects as tokens": (dataset(dtype="object"), "object"),
    "objects in packed rows": (dataset(dtype="object", **PACKED), "object"),
    "objects in padded rows": (dataset(dtype="O", **PADDED), "dtype"),
    "records as tokens": (dataset(dtype="O,i8", **PADDED), "dtype"),
    "a list that is no text": (listing(b"\xff\xfe\n"), "config.json"),
    "steps without end": (duration(HUGE, "steps"), "times"),
    "epochs without end": (duration(HUGE, "epochs"), "times"),
    "epochs beyond numbers": (duration(float("inf"), "epochs"), "config.json"),
    "a batch without end": (updated("data_loader", global_batch_size=HUGE), ""),
    "a seed below zero": (updated("data_loader", seed=-(10**6)), ""),
    "a batch that never comes": (
        in_config(lambda config: config["trainer"].setdefault("callbacks", {}).update(
            batch_size_scheduler={"batch_sizes": [128, 128 * 7 * HUGE], "schedule": [
                {"value": 0, "unit": "steps"}, {"value": 1, "unit": "steps"}]}
        )), ""),
    "lists in lists": (at("ckpt/step10/config.json", lambda path: path.write_text("[" * 100_000)), "config.json"),
    "lists in the config": (in_config(lambda config: config.update(deep=nested(900))), ""),
    "a config of a pipe": (at("ckpt/step10/config.json", fifo), ""),
    # A link to itself is nothing, and the order need not be there.
    **{f"an order of {name}": (at(INDICES, change), "global_indices" * (name != "a link to itself"))
       for name, change in NO_FILES.items()},
    "a state of a pipe": (at("ckpt/step10/train/rank0.pt", fifo), ""),
    "a list as the state": (
        at("ckpt/step10/train/rank0.pt", lambda path: path.write_bytes(list_archive())), "rank0.pt"),
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def list_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02].")
    return buffer.getvalue()


def test_runs_of_olmo_core(core: Path, tmp_path: Path) -> None:
    assert_refused(copied(core, "main", CORE, tmp_path))


# --- Megatron's trainers ---------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


def config_of(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        (path,) = [*folder.glob("*.yml")]
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_bytes()) | fields))

    return change


def idx(change: Callable[[bytearray], object]) -> Change:
    def rewrite(folder: Path) -> None:
        for path in folder.glob("*.idx"):
            raw = bytearray(path.read_bytes())
            change(raw)
            path.write_bytes(bytes(raw))

    return rewrite


def packed_at(offset: int, form: str, value: int) -> Change:
    return idx(lambda raw: struct.pack_into(form, raw, offset, value))


def sharded(change: Change) -> Change:
    """The data as one shard, which is found by a pattern."""

    def rewrite(folder: Path) -> None:
        path = folder / "toy_text_document.bin"
        shard = path.with_name("toy_text_document-00000-of-00001.bin")
        path.rename(shard)
        change(shard)

    return rewrite


MEGATRON_DATA: dict[str, tuple[Change, str]] = {
    "sequences without end": (packed_at(18, "<Q", 2**60), ".idx"),
    "documents without end": (packed_at(26, "<Q", 2**60), ".idx"),
    "sequences below zero": (packed_at(18, "<Q", 2**64 - 1), ".idx"),
    "a sequence of gigabytes": (packed_at(34, "<i", 2**31 - 1), ".idx"),
    "a sequence below zero": (packed_at(34, "<i", -1), ".idx"),
    "another version": (packed_at(9, "<Q", 2**63), ".idx"),
    "an unknown dtype": (packed_at(17, "<B", 200), ".idx"),
    "floats": (packed_at(17, "<B", 6), ".idx"),
    "no index": (idx(lambda raw: raw.clear()), ".idx"),
    **{f"a shard of {name}": (sharded(change), "-of-00001.bin") for name, change in NO_FILES.items()},
}
COUNTS: dict[str, tuple[Change, str]] = {
    "seeds beyond numbers": (config_of(seed=10**30), ""),
    "a row of nothing": (config_of(seq_length=0), ""),
    "a row without end": (config_of(seq_length=HUGE), ""),
    "a row below zero": (config_of(seq_length=-5), ""),
    "a split of infinity": (config_of(split="1e400,1,1"), ""),
    "a split of nothing": (config_of(split="0,0,0"), ""),
    "a split of text": (config_of(split="a,b,c"), ""),
    "a billion laughs": (lambda folder: (folder / "z.yml").write_text(LAUGHS), ""),
    "a map as the path": (config_of(data_path={"a": ["b"]}), ""),
    "a pipe as a config": (lambda folder: fifo(folder / "z.yml"), ""),
    "a folder as a config": (lambda folder: (folder / "z.yml").mkdir(), ""),
    "a metrics file of zeros": (lambda folder: link_to("/dev/zero")(folder / "metrics.jsonl"), ""),
}


def blend(*weights: float) -> Change:
    paths = ["toy_text_document"] * len(weights)
    return config_of(data_path=None, train_data_paths=paths, train_data_weights=list(weights))


NEOX_RUN = {
    **MEGATRON_DATA,
    **COUNTS,
    "steps without end": (config_of(train_iters=HUGE), "check train_iters"),
    "rows without end": (config_of(train_batch_size=HUGE), "check train_iters"),
    "steps beyond floats": (config_of(train_iters=float("inf")), ""),
    "a blend of nothing": (blend(0), ""),
    "a blend of what is no number": (blend(float("nan"), 1), ""),
    "a blend below zero": (blend(-1, 2), ""),
    "a checkpoint's config in lists": (
        lambda folder: [
            (folder / "step1").mkdir(),
            (folder / "step1" / "model.safetensors").write_bytes(b"x"),
            (folder / "step1" / "config.json").write_text("[" * 100_000),
        ], ""),
}  # fmt: skip
BLOOM_RUN = {
    **MEGATRON_DATA,
    **COUNTS,
    "samples without end": (config_of(train_samples=HUGE, rampup_batch_size=None), "check train_iters"),
    "a ramp without end": (config_of(rampup_batch_size=[1, 1, HUGE]), "ramp"),
    "a ramp below zero": (config_of(rampup_batch_size=[-4, 4, 100]), "ramp"),
    "a ramp of text": (config_of(rampup_batch_size="a b c"), ""),
}


def megatron(kind: str, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(FIXTURES / f"{kind}-run", tmp_path / "source" / kind))
    for end in ("bin", "idx"):
        shutil.copy(NEOX / f"toy_text_document.{end}", folder)
    (config,) = [*folder.glob("*.yml")]
    text = config.read_text()
    content = {key.replace("-", "_"): value for key, value in yaml.safe_load(text).items()}
    content["data_path"] = "toy_text_document"
    config.write_text(yaml.safe_dump(content))
    return folder.parent


@pytest.mark.parametrize(("kind", "changes"), [("neox", NEOX_RUN), ("bloom", BLOOM_RUN)], ids=["neox", "bloom"])
def test_runs_of_megatrons_trainers(kind: str, changes: dict[str, tuple[Change, str]], tmp_path: Path) -> None:
    assert_refused(copied(megatron(kind, tmp_path), kind, changes, tmp_path))


# --- LLM360 ----------------------------------------------------------------------------------------------------------


def chunk(content: bytes, name: str = "train_0.jsonl") -> Change:
    return lambda folder: (folder / name).write_bytes(content)


LINE = b'{"token_ids": [' + b"1, " * 2048 + b'1], "source": "a"}\n'
LLM360: dict[str, tuple[Change, str]] = {
    "lists in lists": (chunk(LINE * 2240 + b"[" * 100_000 + b"\n"), ".jsonl"),
    "only lists": (chunk(b"[" * 100_000), ""),
    "an empty line": (chunk(LINE + b"\n" + LINE), "train_0.jsonl"),
    "ids beyond numbers": (chunk(LINE * 2240 + LINE.replace(b" 1]", b" 1e400]")), "train_0.jsonl"),
    "a chunk's number without end": (chunk(LINE, f"train_{10**30}.jsonl"), "no chunk"),
    "a chunk of a pipe": (at("train_1.jsonl", fifo), ""),
    "a chunk of zeros": (at("train_1.jsonl", link_to("/dev/zero")), ""),
}


def test_runs_of_llm360(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "amber").mkdir(parents=True)
    (source / "amber" / "train_0.jsonl").write_bytes(LINE * 2240)

    assert_refused(copied(source, "amber", LLM360, tmp_path))


# --- the workspace itself --------------------------------------------------------------------------------------------


def test_an_index_of_another_kind_fetches_no_extension(tiny_source: Path, workspace: Workspace) -> None:
    """DuckDB would download what reads an SQLite file."""
    run = add(tiny_source, workspace=workspace)
    index = workspace.home(run.name) / "index.duckdb"
    index.unlink()
    with sqlite3.connect(index) as database:
        database.execute("CREATE TABLE segments (a)")
    database.close()
    (index.parent / "seal.json").unlink()
    with pytest.raises(CorruptFile, match="index.duckdb cannot be opened as an index; .*not a valid DuckDB"):
        connect(workspace)
    for change in NO_FILES.values():
        index.unlink()
        change(index)
        with pytest.raises(UnsafeFile, match="index.duckdb"):
            connect(workspace)
        if index.is_dir() and not index.is_symlink():
            index.rmdir()
            index.touch()


def test_a_file_without_counted_blocks_is_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems count none; what their own search for holes does not find is data."""
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(UnsafeFile, match="nearly all of them are a hole"):
        require_file(tmp_path / "tokens.bin")
    monkeypatch.setattr(os, "lseek", lambda descriptor, offset, how: 5 * 2**30)

    assert require_file(tmp_path / "tokens.bin") == 5 * 2**30


def test_links_to_files_are_followed(tiny_source: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Caches of model hubs are made of links; only what is no file in the end is refused."""
    folder = Path(shutil.copytree(tiny_source, tmp_path / "linked"))
    for path in [*folder.rglob("*.safetensors"), *folder.glob("tokens/*.bin")]:
        blob = tmp_path / "blobs" / path.relative_to(folder).as_posix().replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(blob)

    assert add(folder, workspace=workspace).trust.level == "exact"


def test_a_folder_that_is_a_link_to_itself_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnsafeFile, match="loop leads nowhere"):
        add(tmp_path / "loop", workspace=workspace)
    assert np.array_equal(workspace.run_names(), [])
