"""Every batch that a real trainer or loader recorded comes out of `add` and `batches` as it was served."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.batch import Batch
from data_index.instances.packed import PLAIN, sort_kernel
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.lookup import batch, batches

FIXTURES = Path(__file__).parents[1] / "fixtures"
CORE, NEOX, OTHERS = FIXTURES / "olmo-core", FIXTURES / "neox", FIXTURES / "other-orders"
TOY = {"data_path": "toy_text_document", "seq_length": 32, "train_batch_size": 8, "seed": 1234, "split": "1,0,0"}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens_of(served: list[Batch]) -> np.ndarray:
    return np.concatenate([one.token_ids for one in served])


# --- legacy OLMo -----------------------------------------------------------------------------------------------------


def test_every_batch_of_the_olmo_trainer_is_the_one_it_recorded(core_shared: Workspace) -> None:
    """Instances, the filter's verdict and the tokens themselves; rank 0's own list says the same."""
    record = lines_of(FIXTURES / "olmo" / "metrics.jsonl")
    with gzip.open(FIXTURES / "olmo" / "run" / "data-indices" / "rank0.tsv.gz", "rt") as file:
        by_rank = [[int(number) for number in line.split()] for line in file]
    parts = [np.fromfile(FIXTURES / "olmo" / "data" / f"part-{n}-00000.npy", dtype="<u2") for n in range(3)]
    rows = np.concatenate([part[: len(part) // 128 * 128].reshape(-1, 128) for part in parts])

    served = list(batches("olmo", 0, 25, workspace=core_shared))

    assert [one.step for one in served] == [line["step"] for line in record] == list(range(1, 26))
    for one, line, (step, *instances) in zip(served, record, by_rank, strict=True):
        assert one.instances.tolist() == line["indices"] == instances
        assert (~one.filtered).tolist() == line["instance_mask"]
        assert np.array_equal(one.token_ids, rows[one.instances])
        assert (one.step, one.epoch) == (step, 1)


def test_steps_that_were_not_recorded_follow_from_the_config(core_shared: Workspace) -> None:
    """31 batches fill epoch 1 (of 250 instances, two are dropped); epoch 2 is shuffled with the next seed."""
    run = core_shared.run("olmo")
    epochs = []
    for seed in (6198, 6199):
        order = np.arange(250, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(seed=seed)).shuffle(order)
        epochs.append(order)

    served = [one.instances.tolist() for one in batches("olmo", 25, 40, workspace=core_shared)]

    assert run.last_step == 40
    assert served[:6] == epochs[0][200:248].reshape(6, 8).tolist()
    assert served[6:] == epochs[1][:72].reshape(9, 8).tolist()
    assert batch("olmo", 32, workspace=core_shared).column("epoch").to_pylist() == [2] * 8


# --- OLMo-core -------------------------------------------------------------------------------------------------------


def test_rows_that_the_olmo_core_trainer_filtered_are_filtered(core_shared: Workspace) -> None:
    record = [line for line in lines_of(CORE / "skipstep" / "metrics.jsonl") if line["kind"] == "batch"]

    served = list(batches("skip", 0, len(record), workspace=core_shared))

    assert not all(all(line["instance_mask"]) for line in record)
    for one, line in zip(served, record, strict=True):
        assert one.instances.tolist() == line["index"]
        assert (~one.filtered).tolist() == line["instance_mask"]
        assert one.counts_as_target.any(axis=1).tolist() == line["instance_mask"]
        assert hashlib.sha256(one.token_ids.tobytes()).hexdigest() == line["input_ids_i64_sha256"]


def composable(config: dict[str, Any]) -> list[dict[str, Any]]:
    """One concat-and-chunk source a file, as the record describes it in words."""
    tokenizer = {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1}
    classes = "olmo_core.data.composable"
    return [
        {
            "_CLASS_": f"{classes}.ConcatAndChunkInstanceSourceConfig",
            "sequence_length": config["sequence_length"],
            "max_sequence_length": config["max_sequence_length"],
            "sources": [
                {
                    "_CLASS_": f"{classes}.NumpyDocumentSourceConfig",
                    "source_paths": [f"data/part-0{number}-00000.npy"],
                    "dtype": "uint16",
                    "tokenizer": tokenizer,
                }
            ],
        }
        for number in range(3)
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CORE / "data_orders").glob("*.json")))
def test_every_batch_of_every_loader_is_the_one_it_served(
    name: str, write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    record = json.loads((CORE / "data_orders" / f"{name}.json").read_text())
    config = record["config"]
    known = [(epoch["epoch"], one) for epoch in record["epochs"] for one in epoch["data"]]
    folder = write_core(tmp_path / "run", config.get("dataset") or composable(config), epochs=len(record["epochs"]))

    run = add(folder, data=CORE, workspace=workspace)
    served = list(batches("run", 0, len(known), workspace=workspace))

    assert (run.layout, run.last_step) == ("olmo_core", len(known))
    sorts_otherwise = name.startswith("packed") and sort_kernel() == PLAIN
    assert run.trust.level == ("unknown" if sorts_otherwise else "derived")
    for one, (epoch, line) in zip(served, known, strict=True):
        assert (one.epoch, one.instances.tolist(), list(one.token_ids.shape)) == (epoch, line["index"], line["shape"])
        if not sorts_otherwise:
            assert hashlib.sha256(one.token_ids.tobytes()).hexdigest() == line["sha256_i64"]
            assert one.counts_as_target.sum(axis=1).tolist() == (line.get("label_mask_sum") or [line["shape"][1]] * 8)


# --- Megatron's descendants ------------------------------------------------------------------------------------------


def test_the_batches_of_gpt_neox_are_the_rows_it_served(workspace: Workspace) -> None:
    known = np.load(NEOX / "single_1epoch_seed1234.batches.npy")

    run = add(NEOX, layout="neox", name="toy", settings=TOY | {"train_iters": 20}, workspace=workspace)
    served = list(batches("toy", 0, 20, workspace=workspace))

    assert (run.sequence_length, run.tokens_per_instance, run.last_step) == (33, 32, 20)
    assert np.array_equal(np.stack([one.token_ids for one in served]), known)
    assert all(one.counts_as_target.all() for one in served)


def test_a_preshuffled_set_is_read_as_its_own_viewer_reads_it(workspace: Workspace) -> None:
    """Steps 4..6 are what the viewer calls iterations 3..5."""
    settings = TOY | {"data_path": "preshuffled_toy_document", "train_iters": 20}

    run = add(NEOX, layout="neox", name="pre", settings=settings, workspace=workspace)

    assert (run.order.rule, run.num_instances, run.last_step) == ("sequential", 160, 20)
    viewed = np.load(NEOX / "batch_viewer_steps3-5.npy")
    assert np.array_equal(tokens_of(list(batches("pre", 3, 6, workspace=workspace))), viewed)


def test_the_samples_of_megatron_deepspeed_are_those_it_served(workspace: Workspace) -> None:
    settings = {
        "data_path": "toy_text_document",
        "seq_length": 32,
        "seed": 42,
        "train_samples": 161,
        "global_batch_size": 7,
        "split": "1,0,0",
    }

    run = add(NEOX, layout="bloom", name="toy", settings=settings, workspace=workspace)

    assert run.last_step == 23
    known = np.load(OTHERS / "megatron-deepspeed" / "ep1_ns161_sl32_seed42.samples.npy")
    assert np.array_equal(tokens_of(list(batches("toy", 0, 23, workspace=workspace))), known)


# --- LLM360 ----------------------------------------------------------------------------------------------------------


def test_the_batches_of_amber_are_those_it_served(workspace: Workspace) -> None:
    """103 lines: five batches of 20, rank after rank; three lines are left over."""
    settings = {"instances_per_batch": 20, "world_size": 4}

    run = add(OTHERS / "llm360", name="amber", settings=settings, workspace=workspace)
    served = [one.token_ids for one in batches("amber", 0, 5, workspace=workspace)]

    assert (run.layout, run.last_step, run.trust.level) == ("amber", 5, "chunk")
    assert np.array_equal(np.stack(served), np.load(OTHERS / "llm360" / "amber_fresh_seed11111.batches.npy"))


def test_an_order_of_amber_is_derived_once_its_restarts_are_stated(workspace: Workspace) -> None:
    settings = {"instances_per_batch": 20, "world_size": 4, "restarts": "0"}

    assert add(OTHERS / "llm360", name="amber", settings=settings, workspace=workspace).trust.level == "derived"
