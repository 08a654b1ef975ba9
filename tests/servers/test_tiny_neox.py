"""The tiny run that the fake hub publishes is one that this toolkit reads, and was trained as Pythia's were."""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.lookup import batches
from tests.servers.fake_hub import FakeHub
from tests.servers.tiny_neox import LENGTH, MODULES, REPO, REPO_WITH_DATA, SAVED, TinyRun, train_tokenizer

LARGE = "model.safetensors"


def test_the_tiny_run_is_trained_and_its_first_update_changes_nothing(tiny_neox: TinyRun) -> None:
    weights = {step: load_file(folder / LARGE) for step, folder in tiny_neox.checkpoints.items()}

    assert tuple(weights) == SAVED
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[1][name], weights[2][name]) for name in weights[0] if "weight" in name)
    assert np.mean(tiny_neox.losses[-8:]) < np.mean(tiny_neox.losses[:8]) - 1


def test_a_shard_ends_inside_a_row(tiny_neox: TinyRun) -> None:
    shards = [path for path in tiny_neox.data if path.suffix == ".bin"]
    row_bytes = 2 * (LENGTH + 1)

    assert [path.name for path in shards] == [f"document-0000{n}-of-00002.bin" for n in range(3)]
    assert all(path.stat().st_size % row_bytes for path in shards)
    assert b"".join(path.read_bytes() for path in shards) == tiny_neox.rows.tobytes()


def test_the_tiny_run_is_a_local_run_that_serves_what_it_trained_on(tiny_neox: TinyRun, workspace: Workspace) -> None:
    run = add(tiny_neox.folder, workspace=workspace)

    assert (run.layout, run.order.rule, run.last_step) == ("neox", "sequential", 64)
    served = np.stack([one.token_ids for one in batches(run.name, 0, run.last_step, workspace=workspace)])
    assert np.array_equal(served, tiny_neox.rows)


def test_rows_are_text_in_the_right_tokenizer_only(tiny_neox: TinyRun) -> None:
    """Tokens that a tokenizer did not make are not what it makes of their text."""
    right = Tokenizer.from_file(str(tiny_neox.tokenizer))
    library = Path(sysconfig.get_path("stdlib"))
    wrong = train_tokenizer([(library / name).read_text(encoding="utf-8") for name in ("heapq.py", "ast.py")])

    def survives(tokenizer: Tokenizer, row: np.ndarray) -> bool:
        inner = row[row != 0].tolist()
        return tokenizer.encode(tokenizer.decode(inner)).ids[8:-8] == inner[8:-8]

    rows = tiny_neox.rows.reshape(-1, LENGTH + 1)[::16]
    share = {name: np.mean([survives(t, row) for row in rows]) for name, t in (("right", right), ("wrong", wrong))}
    assert share["right"] > 0.9 and share["wrong"] < 0.5
    assert right.token_to_id("<|endoftext|>") == 0 and (tiny_neox.rows == 0).sum() in range(1, len(MODULES) + 1)


def test_the_second_variant_has_its_data_in_the_main_revision(fake_hub: FakeHub, tiny_neox: TinyRun) -> None:
    main, data = fake_hub.repo(REPO_WITH_DATA).branches["main"], {path.name for path in tiny_neox.data}

    assert data | {LARGE, "tokenizer.json"} <= set(fake_hub.repo(REPO_WITH_DATA).commits[main])
    assert data.isdisjoint(fake_hub.repo(REPO).commits[fake_hub.repo(REPO).branches["main"]])
