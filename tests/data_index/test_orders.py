"""Orders: the trainers' own are reproduced, recorded ones are checked."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile, UnknownLayout
from data_index.orders import epoch_order
from data_index.orders.olmo_core_fsl import global_indices
from data_index.run import Order, OrderTrust, Run, Segment, TokenFile
from data_index.workspace import Workspace

WORK = Path(__file__).parents[1] / "fixtures" / "olmo-core" / "main" / "work"

# sha256 of OLMo-core 3.0.0's own global_indices files, seed 34521: (instances, chunk size, epoch) -> hash.
OLMO_CORE = {
    (213, 1, 1): "5ce8ba819b256dbe8c28d5ffc70e13baa1d13a6e71e34104392f7ebc911aa59a",
    (213, 1, 2): "7b121ee4127c42ef247ff111d78c27b59c9444fcc0d4319c043d8833c1e80c46",
    (210, 2, 1): "050980ee3a7d3a1aaae01ce88b8b2f511e15b9f079702cff6d3293e05e2935db",
    (210, 2, 2): "d9d2b5567d034a74f40720f914678b378d34711db155d01f55eb5c56f66f9474",
}

FIXTURES = Path(__file__).parents[1] / "fixtures"


def a_run(folder: Path, order: Order, num_instances: int = 6) -> Run:
    file = TokenFile(
        name="a", path=folder / "a", dtype="uint16", num_bytes=0, first_instance=0, num_instances=num_instances
    )
    return Run(
        name="small",
        layout="native",
        source=folder,
        sequence_length=8,
        files=(file,),
        order=order,
        segments=(Segment(first_step=1, num_steps=1, epoch=1, first_position=0, instances_per_batch=2),),
        trust=OrderTrust(level="derived", witness="a test"),
        config_format="native",
        config={},
    )


def recorded(folder: Path, content: bytes | None, sha256: str | None = None) -> Run:
    """A run whose first epoch is the order file of these bytes."""
    if content is not None:
        (folder / "epoch-1.npy").write_bytes(content)
    entry = {"path": "epoch-1.npy", "sha256": sha256 or hashlib.sha256(content or b"").hexdigest()}
    return a_run(folder, Order(rule="file", parameters={"epoch_1": entry}))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- computed --------------------------------------------------------------------------------------------------------


def test_the_order_is_the_file_that_the_trainer_left() -> None:
    (path,) = WORK.glob("global_indices*.npy")
    known = np.fromfile(path, dtype="<u4")

    assert np.array_equal(global_indices(213, seed=34521, epoch=1), known)


@pytest.mark.parametrize(("num_instances", "chunk_size", "epoch"), OLMO_CORE)
def test_the_order_hashes_like_the_trainers(num_instances: int, chunk_size: int, epoch: int) -> None:
    order = global_indices(num_instances, seed=34521, epoch=epoch, chunk_size=chunk_size)

    assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest() == OLMO_CORE[num_instances, chunk_size, epoch]


@pytest.mark.parametrize("name", ["fsl", "fsl_chunk2"])
def test_published_batches_are_those_of_the_rule(name: str) -> None:
    """Every batch that OLMo-core's loader handed out, two epochs."""
    record = json.loads((FIXTURES / "olmo-core" / "data_orders" / f"{name}.json").read_text())
    dataset, num_instances = record["config"]["dataset"], record["config"]["len"]
    chunk_size = dataset["max_target_sequence_length"] // dataset["sequence_length"]
    for epoch in record["epochs"]:
        order = global_indices(
            num_instances, seed=record["config"]["seed"], epoch=epoch["epoch"], chunk_size=chunk_size
        )
        batches = [batch["index"] for batch in epoch["data"]]

        assert len(order) == epoch["indices_len"]
        assert hashlib.sha256(order.astype("<u4").tobytes()).hexdigest() == epoch["indices_sha256"]
        assert order[: len(batches) * 8].reshape(-1, 8).tolist() == batches


@pytest.mark.parametrize("seed", range(40))
def test_every_instance_stands_at_most_once_in_an_epoch(seed: int) -> None:
    """All but the remainder of the last chunk, and chunks stay whole."""
    generator = np.random.default_rng(seed)
    num_instances, chunk_size = int(generator.integers(0, 500)), int(generator.integers(1, 9))
    order = global_indices(num_instances, seed=seed, epoch=1 + seed % 3, chunk_size=chunk_size)
    chunks = order.reshape(-1, chunk_size)

    assert sorted(order.tolist()) == list(range(num_instances // chunk_size * chunk_size))
    assert (chunks[:, 0] % chunk_size == 0).all()
    assert np.array_equal(chunks, chunks[:, :1] + np.arange(chunk_size))


def test_the_seed_and_the_epoch_make_the_order() -> None:
    """They are added: epoch 2 of one seed is epoch 1 of the next."""
    assert np.array_equal(global_indices(50, seed=7, epoch=2), global_indices(50, seed=8, epoch=1))
    assert not np.array_equal(global_indices(50, seed=7, epoch=1), global_indices(50, seed=7, epoch=2))


def test_a_run_names_its_rule(core_shared: Workspace, tmp_path: Path) -> None:
    run = core_shared.run("core")

    assert np.array_equal(epoch_order(run, 2), global_indices(213, seed=34521, epoch=2))
    with pytest.raises(
        UnknownLayout, match="small names the order rule 'dice'; known rules: file, olmo, olmo_core_fsl"
    ):
        epoch_order(a_run(tmp_path, Order(rule="dice")), 1)


# --- recorded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_a_recorded_order_is_given_as_it_is(dtype: str, tmp_path: Path) -> None:
    """Also where an instance comes twice, as planted accidents do."""
    order = np.array([5, 0, 3, 0, 1], dtype=dtype)

    assert np.array_equal(epoch_order(recorded(tmp_path, npy(order)), 1), order)


GOOD = np.array([5, 0, 3], dtype=np.uint32)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "truncated": (npy(GOOD)[:-1], "is not a whole .npy file"),
    "header only": (npy(GOOD)[:40], "is not a whole .npy file"),
    "empty": (b"", "is not a whole .npy file"),
    "no npy": (b"5 0 3\n", "is not a whole .npy file"),
    "past the end": (npy(np.array([0, 6], np.uint32)), "names instance 6; small has 6 instances"),
    "floats": (npy(np.array([0.0, 1.0])), "holds float64 of shape .2,., not a row of unsigned integers"),
    "signed": (npy(np.array([0, -1])), "holds int64 of shape .2,., not a row of unsigned integers"),
    "a table": (npy(GOOD.reshape(1, 3)), "holds uint32 of shape .1, 3., not a row of unsigned integers"),
    "pickled objects": (
        npy(np.array([{}], dtype=object)),
        "is not a whole .npy file: Array can't be memory-mapped: Python objects",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_order_is_corrupt_even_if_its_hash_is_stated(damage: str, tmp_path: Path) -> None:
    content, said = DAMAGED[damage]

    with pytest.raises(CorruptFile, match=said):
        epoch_order(recorded(tmp_path, content), 1)


def test_an_order_with_another_hash_is_corrupt(tmp_path: Path) -> None:
    run = recorded(tmp_path, npy(GOOD), hashlib.sha256(b"other").hexdigest())

    with pytest.raises(CorruptFile, match=r"epoch-1.npy is not the order that run.toml of small names .*: restore"):
        epoch_order(run, 1)


@pytest.mark.parametrize(
    ("change", "epoch", "said"),
    [
        (lambda run: run, 1, "epoch-1.npy is not there"),
        (lambda run: run, 2, "small names no order file for epoch 2"),
        (lambda run: replace(run, order=Order(rule="file")), 1, "small names no order file for epoch 1"),
    ],
)
def test_an_order_that_is_not_there_is_missing(
    change: Callable[[Run], Run], epoch: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(MissingFile, match=said):
        epoch_order(change(recorded(tmp_path, None)), epoch)
