"""Amber's and K2's orders, held against what their own code served."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import OrderMismatch
from data_index.orders.llm360 import amber_order, k2_chunk_order, k2_order, k2_shuffle

LLM360 = Path(__file__).parents[1] / "fixtures" / "other-orders" / "llm360"


def test_ambers_batches_are_those_that_its_trainer_served() -> None:
    """103 lines, 4 ranks of 5 rows: row by row, rank after rank; 3 lines are left out."""
    lines = (LLM360 / "amber_train_0.jsonl").read_text().splitlines()
    token_ids = np.array([json.loads(line)["token_ids"] for line in lines])
    served = np.load(LLM360 / "amber_fresh_seed11111.batches.npy")

    order = amber_order([103], [0], world_size=4, rows_per_rank=5)

    assert np.array_equal(token_ids[order].reshape(served.shape), served)


def test_a_chunk_of_amber_depends_on_where_its_process_started_but_its_lines_do_not() -> None:
    sizes = [103, 90, 60]

    def chunks(starts: list[int]) -> list[list[int]]:
        order = amber_order(sizes, starts, world_size=2, rows_per_rank=5)
        return [order[:100].tolist(), order[100:190].tolist(), order[190:].tolist()]

    straight, restarted = chunks([0]), chunks([0, 1])
    assert straight[0] == restarted[0]
    assert straight[1] != restarted[1]
    assert straight[2] != restarted[2]
    assert sorted(straight[1]) == sorted(restarted[1]) == [*range(103, 193)]


def test_ambers_processes_draw_one_permutation_a_chunk_from_one_generator() -> None:
    """With one rank, an order is the permutations of numpy's legacy generator, seeded with 11111 + the first chunk."""
    first, second = np.random.RandomState(11111), np.random.RandomState(11113)
    permutations = [first.permutation(8), first.permutation(6), second.permutation(9)]

    order = amber_order([8, 6, 9], [0, 2], world_size=1, rows_per_rank=1)

    expected = np.concatenate([permutations[0], 8 + permutations[1], 14 + permutations[2]])
    assert order.tolist() == expected.tolist()


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 2, 1], [0, 3]])
def test_starts_that_no_processes_can_have_are_refused(starts: list[int]) -> None:
    with pytest.raises(OrderMismatch, match="cannot have started"):
        amber_order([5, 5, 5], starts, world_size=1, rows_per_rank=1)


def test_k2s_chunks_come_in_the_order_of_its_trainer() -> None:
    assert k2_chunk_order() == json.loads((LLM360 / "k2_chunk_order.json").read_text())


def test_the_chunks_of_k2s_two_spikes_are_trained_on_last() -> None:
    assert k2_chunk_order()[-2:] == [160, 186]
    assert sorted(k2_chunk_order()) == [*range(360)]


def test_k2_reads_the_lines_of_each_chunk_as_they_stand() -> None:
    order = k2_order([3] * 360)

    assert order.reshape(360, 3)[:, 0].tolist() == [3 * chunk for chunk in k2_chunk_order()]
    assert (np.diff(order.reshape(360, 3), axis=1) == 1).all()
    assert sorted(order) == [*range(1080)]


def test_chunks_of_other_sizes_stay_where_they_are_numbered() -> None:
    sizes = [chunk % 4 for chunk in range(360)]
    before = np.append(0, np.cumsum(sizes))

    order = k2_order(sizes)

    assert order[:6].tolist() == [*range(6)]
    assert order[-sizes[186] :].tolist() == [*range(before[186], before[187])]


def test_k2_without_all_its_chunks_is_refused() -> None:
    with pytest.raises(OrderMismatch, match="360 chunks; 12 are there"):
        k2_order([3] * 12)


def test_k2s_chunks_were_shuffled_as_its_preparation_does() -> None:
    info = json.loads((LLM360 / "info.json").read_text())

    assert np.array_equal(k2_shuffle(0, 103), np.load(LLM360 / "k2_shuffle_chunk0_n103.npy"))
    for chunk in (0, 1, 160):
        assert k2_shuffle(chunk, 103)[:10].tolist() == info[f"k2_shuffle_chunk{chunk}_first10"]
