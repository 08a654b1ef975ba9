"""The legacy OLMo trainer's order, held against what the trainer wrote."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import OrderMismatch
from data_index.orders.olmo import global_indices

OLMO = Path(__file__).parents[1] / "fixtures" / "olmo"


def order(num_instances: int = 250, **changes: int | bool) -> np.ndarray:
    settings = {"seed": 6198, "epoch": 0, "drop_last": True, "world_size": 1} | changes
    return global_indices(num_instances, **settings)  # type: ignore[arg-type]


def test_the_order_is_the_trainers_file_byte_for_byte() -> None:
    assert order().astype("<u4").tobytes() == (OLMO / "run" / "train_data" / "global_indices.npy").read_bytes()


def test_each_step_is_a_stretch_of_the_order_as_the_rank_recorded_it() -> None:
    lines = gzip.decompress((OLMO / "run" / "data-indices" / "rank0.tsv.gz").read_bytes()).decode().splitlines()
    consumed = {int(step): list(map(int, rest)) for step, *rest in (line.split("\t") for line in lines)}
    logged = {row["step"]: row["indices"] for row in map(json.loads, (OLMO / "metrics.jsonl").read_text().splitlines())}

    assert consumed == logged
    assert len(consumed) == 25
    assert all(order()[8 * (step - 1) : 8 * step].tolist() == rows for step, rows in consumed.items())


def test_epochs_count_from_0_and_add_to_the_seed() -> None:
    assert np.array_equal(order(epoch=1), order(seed=6199))
    assert not np.array_equal(order(epoch=1), order())


@pytest.mark.parametrize(("world_size", "length"), [(1, 250), (4, 248), (8, 248), (7, 245)])
def test_dropping_the_last_rounds_down_to_whole_ranks(world_size: int, length: int) -> None:
    assert np.array_equal(order(world_size=world_size), order()[:length])


@pytest.mark.parametrize(("world_size", "length"), [(1, 250), (4, 252), (7, 252), (600, 600)])
def test_keeping_the_last_repeats_from_the_start(world_size: int, length: int) -> None:
    """With more ranks than instances the trainer goes around several times."""
    padded = order(world_size=world_size, drop_last=False)

    assert len(padded) == length
    assert padded.tolist() == [order()[place % 250] for place in range(length)]


@pytest.mark.parametrize(("num_instances", "epoch"), [(1, 0), (2, 5), (1000, 1)])
def test_every_instance_is_consumed_once_an_epoch(num_instances: int, epoch: int) -> None:
    indices = order(num_instances, epoch=epoch)

    assert indices.dtype == np.uint32
    assert np.array_equal(np.sort(indices), np.arange(num_instances))


def test_the_order_does_not_depend_on_this_numpy() -> None:
    """The hash was computed with numpy 2.4.6."""
    digest = hashlib.sha256(order(100_000, epoch=3).astype("<u4").tobytes()).hexdigest()

    assert digest == "89f41f187361dc9971daa9a5950e9f05f1473a7b872ae274980867872252f3f8"


@pytest.mark.parametrize("num_instances", [0, 2**32 - 1])
def test_numbers_that_the_trainer_refuses_are_refused(num_instances: int) -> None:
    with pytest.raises(OrderMismatch, match="32 bits"):
        order(num_instances)
