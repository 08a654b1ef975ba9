"""Runs of the hub, asked from the command line, against a hub on loopback that speaks to the real client."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_index.errors import (
    AccessDenied,
    CorruptFile,
    MissingFile,
    Offline,
    TooMuchToFetch,
    UnknownLayout,
    UnknownOrder,
    UnknownRun,
    Unreachable,
)
from data_index.registration import add
from data_index.remote import http, hub, hub_files
from data_index.workspace import Workspace
from forensics import batch, replay, where
from replay.recipe import recipe_of_run
from replay.weights import read_tensor, read_weights
from tests.forensics.test_cli import Done, answer, forensics
from tests.servers import faults
from tests.servers.fake_hub import TOKEN, FakeHub
from tests.servers.tiny_neox import DATA_REPO, LENGTH, REPO, REPO_WITH_DATA, ROWS, SAVED, STEPS, TinyRun

DATA = f"hub:datasets/{DATA_REPO}"
TOLD = {"seq_length": LENGTH, "train_iters": STEPS, "train_batch_size": ROWS}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    hub_files._files_at.cache_clear()


@pytest.fixture
def tiny_hub(fake_hub: FakeHub, workspace: Workspace) -> Workspace:
    """A workspace with the hub's tiny run, named `tiny`."""
    add(REPO, name="tiny", data=DATA, settings=TOLD, workspace=workspace)
    return workspace


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_files._files_at.cache_clear()


# --- add, checkpoints ------------------------------------------------------------------------------------------------


def test_a_repository_is_added_and_its_steps_listed(fake_hub: FakeHub, workspace: Workspace) -> None:
    told = [part for name, value in TOLD.items() for part in ("--set", f"{name}={value}")]
    done = forensics(workspace, "add", REPO, "--name", "tiny", "--data", DATA, *told)
    assert done.returncode == 0, done.stderr
    assert "derived (the data lie in training order" in done.stdout
    assert "fetched " in done.stderr

    rows = answer(workspace, "checkpoints", "tiny")
    assert [row["step"] for row in rows] == list(SAVED)
    assert all(row["states"] == ["weights"] and row["available"] for row in rows)
    assert rows[3]["tokens"] == SAVED[3] * ROWS * LENGTH
    assert rows[3]["location"] == f"{fake_hub.address}/{REPO}/resolve/{fake_hub.repo(REPO).commit_of('step4')}"


def test_a_revision_is_resolved_to_a_commit_once(tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun) -> None:
    """What a branch names may change; what the run was registered with does not."""
    other = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[64].iterdir()}
    fake_hub.repo(REPO).put("step4", other)

    weights = read_weights(tiny_hub.checkpoint(tiny_hub.run("tiny"), 4))

    expected = load_file(tiny_neox.checkpoints[4] / "model.safetensors")
    assert torch.equal(weights["gpt_neox.embed_in.weight"], expected["gpt_neox.embed_in.weight"])


def test_no_tensor_and_no_token_is_fetched_to_add(fake_hub: FakeHub, tiny_hub: Workspace) -> None:
    large = [request for request in fake_hub.cdn.log if not request.path.endswith(".idx")]

    assert not any(request.path.endswith((".bin", ".safetensors")) and request.body_bytes for request in large)


def test_data_in_the_repository_itself_are_found(fake_hub: FakeHub, workspace: Workspace) -> None:
    run = add(REPO_WITH_DATA, settings=TOLD, workspace=workspace)

    assert run.name == "tiny-neox-with-data" and run.layout == "neox" and run.num_instances == STEPS * ROWS


def test_data_on_disk_go_with_checkpoints_on_the_hub(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    """The folder's own configuration says what the trainer was told."""
    run = add(REPO, data=tiny_neox.folder, workspace=workspace)

    rows = batch(run.name, 5, tokens=True, workspace=workspace).column("token_ids").to_pylist()
    assert np.array_equal(np.array(rows), tiny_neox.rows[4])
    assert len(workspace.checkpoints(run)) == len(SAVED)


def test_without_data_the_checkpoints_are_there_and_the_order_is_unknown(
    fake_hub: FakeHub, workspace: Workspace
) -> None:
    done = forensics(workspace, "add", REPO)
    assert done.returncode == 0, done.stderr
    assert "what the steps of tiny-neox read is not known" in done.stderr and "--data" in done.stderr

    assert [row["order"] for row in answer(workspace, "runs")] == ["unknown"]
    assert len(answer(workspace, "checkpoints", "tiny-neox")) == len(SAVED)
    with pytest.raises(UnknownOrder, match="what the steps of tiny-neox read is not known here"):
        batch("tiny-neox", 3, workspace=workspace)
    assert answer(workspace, "sql", "select count(*) as n from batches") == [{"n": 0}]


def test_data_that_were_named_must_come_with_what_the_trainer_was_told(fake_hub: FakeHub, workspace: Workspace) -> None:
    with pytest.raises(CorruptFile, match="--set seq_length=… --set train_iters=… --set train_batch_size=…"):
        add(REPO, data=DATA, workspace=workspace)
    assert workspace.run_names() == []


def test_revisions_are_parsed_by_the_pattern_that_is_given(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    named = {f"run7/after-{step}k": files for step in (1, 2, 30)} | {"main": files, "step9": files}
    fake_hub.add_repo("lab/odd", named)

    run = add("lab/odd", revisions=r"^run7/after-(?P<step>\d+)k$", workspace=workspace)

    assert [(c.step, c.revision) for c in workspace.checkpoints(run)] == [
        (1, "run7/after-1k"),
        (2, "run7/after-2k"),
        (30, "run7/after-30k"),
    ]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("step(", "no regular expression"), (r"^step\d+$", "no group for the step"), ("(?P<step>x)", "no revision of")],
)
def test_a_pattern_that_fits_nothing_says_so(pattern: str, said: str, fake_hub: FakeHub, workspace: Workspace) -> None:
    with pytest.raises(UnknownLayout, match=said):
        add(REPO, revisions=pattern, workspace=workspace)


def test_what_is_nowhere_says_where_was_looked(fake_hub: FakeHub, workspace: Workspace) -> None:
    with pytest.raises(MissingFile, match="no-lab/no-run is not on"):
        add("no-lab/no-run", workspace=workspace)
    with pytest.raises(UnknownRun, match=r"no folder, .* \(ORG/NAME\), and .* nearest: pythia"):
        add("pythia-16m", workspace=workspace)


def test_a_gated_repository_wants_a_token(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    fake_hub.add_repo("lab/gated", {"main": files, "step8": files}, gated="all")
    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        add("lab/gated", workspace=workspace)

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = add("lab/gated", workspace=workspace)
    tensor = read_tensor(workspace.checkpoint(run, 8), "gpt_neox.embed_in.weight")

    assert tensor.shape == (512, 32)
    assert not any("authorization" in request.headers for request in fake_hub.cdn.log)


# --- batch, where ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 30, 64])
def test_a_batch_is_what_was_trained_on_and_its_bytes_alone(
    step: int, tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun
) -> None:
    before = fake_hub.cdn.body_bytes
    rows = batch("tiny", step, tokens=True, workspace=tiny_hub).column("token_ids").to_pylist()

    assert np.array_equal(np.array(rows), tiny_neox.rows[step - 1])
    needed = ROWS * (LENGTH + 1) * 2
    assert needed <= fake_hub.cdn.body_bytes - before <= 1.05 * needed
    batch("tiny", step, tokens=True, workspace=tiny_hub)
    assert fake_hub.cdn.body_bytes - before <= 1.05 * needed


def test_a_row_across_shards_is_read_from_both(tiny_hub: Workspace, tiny_neox: TinyRun) -> None:
    table = batch("tiny", f"0:{STEPS}", tokens=True, workspace=tiny_hub)

    rows = np.array(table.column("token_ids").to_pylist()).reshape(tiny_neox.rows.shape)
    assert np.array_equal(rows, tiny_neox.rows)
    assert len(set(table.column("file").to_pylist())) == 3


def test_text_and_instances_are_found(tiny_hub: Workspace, tiny_neox: TinyRun) -> None:
    (row,) = answer(tiny_hub, "where", "tiny", "--instance", "17")
    assert (row["step"], row["position"]) == (3, 17)

    by_hand = {
        (int(step) + 1, int(step) * ROWS + int(place))
        for step, place in zip(*np.nonzero((tiny_neox.rows == 300).any(axis=2)), strict=True)
    }
    found = answer(tiny_hub, "where", "tiny", "--token", "300")
    assert {(row["step"], row["position"]) for row in found} == by_hand
    assert answer(tiny_hub, "where", "tiny", "--text", "def ")


def test_a_search_that_would_fetch_too_much_is_refused_first(tiny_hub: Workspace, fake_hub: FakeHub) -> None:
    before = fake_hub.cdn.body_bytes

    with pytest.raises(TooMuchToFetch, match=r"would fetch 66,560 bytes, and 1,000 are allowed.*--max-fetch 66560"):
        where("tiny", text="def ", max_fetch=1000, workspace=tiny_hub)
    with pytest.raises(TooMuchToFetch, match="the tokens of steps 1..64 of tiny would fetch 66,560 bytes"):
        batch("tiny", "0:64", tokens=True, max_fetch=66_559, workspace=tiny_hub)
    assert fake_hub.cdn.body_bytes == before


def test_a_plan_says_what_would_be_fetched(tiny_hub: Workspace) -> None:
    assert answer(tiny_hub, "batch", "tiny", "0:4", "--tokens", "--plan")["download"] == 4 * ROWS * (LENGTH + 1) * 2
    batch("tiny", 2, tokens=True, workspace=tiny_hub)
    assert answer(tiny_hub, "batch", "tiny", "0:4", "--tokens", "--plan")["download"] == 3 * ROWS * (LENGTH + 1) * 2
    assert answer(tiny_hub, "batch", "tiny", "0:4", "--plan")["download"] == 0


def test_data_of_another_tokenizer_are_not_given_out(tiny_hub: Workspace, fake_hub: FakeHub) -> None:
    """Wrong content in the right size: no hash of a stretch is known, but these are no token ids."""
    path = fake_hub.cdn_path(DATA_REPO, "main", "document-00000-of-00002.bin", "dataset")
    fake_hub.cdn.plant(path, faults.WrongContent(), forever=True)

    with pytest.raises(CorruptFile, match="tiny has 512 ids: these are not its data, or the server sent wrong content"):
        batch("tiny", 3, tokens=True, workspace=tiny_hub)


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_one_tensor_is_fetched_without_the_model(tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun) -> None:
    checkpoint = tiny_hub.checkpoint(tiny_hub.run("tiny"), 16)
    before = fake_hub.cdn.body_bytes

    tensor = read_tensor(checkpoint, "gpt_neox.embed_in.weight")

    file = tiny_neox.checkpoints[16] / "model.safetensors"
    (header,) = struct.unpack("<Q", file.read_bytes()[:8])
    assert torch.equal(tensor, load_file(file)["gpt_neox.embed_in.weight"])
    assert fake_hub.cdn.body_bytes - before == tensor.numel() * 4 + 8 + header


def test_all_weights_are_fetched_once_into_the_shared_cache(
    tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun, hub_environment: Path
) -> None:
    checkpoint = tiny_hub.checkpoint(tiny_hub.run("tiny"), 32)

    weights = read_weights(checkpoint)

    expected = load_file(tiny_neox.checkpoints[32] / "model.safetensors")
    assert len(weights) == len(expected)
    assert all(torch.equal(weights[name], expected[name.replace("lm_head", "embed_out")]) for name in weights)
    folder = hub_environment / f"models--{REPO.replace('/', '--')}" / "snapshots" / str(checkpoint.commit)
    assert (folder / "model.safetensors").is_file()
    before = fake_hub.cdn.body_bytes
    read_weights(checkpoint)
    read_tensor(checkpoint, "gpt_neox.embed_in.weight")
    assert fake_hub.cdn.body_bytes == before


def test_a_mirror_without_ranges_gives_files_whole(tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun) -> None:
    for path in list(fake_hub.cdn.files):
        fake_hub.cdn.plant(path, faults.IgnoresRange(), forever=True)
    checkpoint = tiny_hub.checkpoint(tiny_hub.run("tiny"), 16)

    rows = batch("tiny", "0:64", tokens=True, workspace=tiny_hub).column("token_ids").to_pylist()
    tensor = read_tensor(checkpoint, "gpt_neox.embed_in.weight")

    assert np.array_equal(np.array(rows).reshape(tiny_neox.rows.shape), tiny_neox.rows)
    expected = load_file(tiny_neox.checkpoints[16] / "model.safetensors")
    assert torch.equal(tensor, expected["gpt_neox.embed_in.weight"])


def test_weights_that_were_found_wrong_are_not_given_out_afterwards(
    tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun, hub_environment: Path
) -> None:
    """The shared cache is everyone's: nothing wrong is left there."""
    fake_hub.cdn.plant(fake_hub.cdn_path(REPO, "step8", "model.safetensors"), faults.WrongContent(at=9000))
    checkpoint = tiny_hub.checkpoint(tiny_hub.run("tiny"), 8)
    with pytest.raises(CorruptFile):
        read_weights(checkpoint)

    expected = load_file(tiny_neox.checkpoints[8] / "model.safetensors")["gpt_neox.embed_in.weight"]
    assert torch.equal(read_tensor(checkpoint, "gpt_neox.embed_in.weight"), expected)
    assert not list(hub_environment.rglob(f"snapshots/{checkpoint.commit}/model.safetensors"))
    assert torch.equal(read_weights(checkpoint)["gpt_neox.embed_in.weight"], expected)


def test_a_run_is_read_from_another_endpoint_than_it_was_added_from(
    tiny_hub: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_weights(tiny_hub.checkpoint(tiny_hub.run("tiny"), 8))
    with FakeHub() as other:
        from tests.servers.tiny_neox import publish

        publish(other, tiny_neox)
        monkeypatch.setenv("HF_ENDPOINT", f"{other.address}/")

        rows = batch("tiny", 5, tokens=True, workspace=tiny_hub).column("token_ids").to_pylist()
        assert np.array_equal(np.array(rows), tiny_neox.rows[4])
        assert len(read_weights(tiny_hub.checkpoint(tiny_hub.run("tiny"), 8))) == 28  # from the shared cache
        assert other.cdn.body_bytes < 2000


def test_two_runs_in_one_repository_are_not_mixed(fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    named = [f"step{step}-seed-{seed}" for step in (0, 10) for seed in ("default", "other")]
    fake_hub.add_repo("lab/seeds", dict.fromkeys(("main", *named), files))

    with pytest.raises(UnknownLayout, match=r"two revisions for step 0, step0-seed-default and step0-seed-other"):
        add("lab/seeds", revisions=r"^step(?P<step>\d+)-seed", workspace=workspace)
    run = add("lab/seeds", revisions=r"^step(?P<step>\d+)-seed-other$", workspace=workspace)
    assert [c.step for c in workspace.checkpoints(run)] == [0, 10]


def test_a_search_where_nothing_is_known_is_no_empty_answer(fake_hub: FakeHub, workspace: Workspace) -> None:
    add(REPO, workspace=workspace)

    for question in ({"text": "def"}, {"token": 3}, {"instance": 0}):
        with pytest.raises(UnknownOrder):
            where("tiny-neox", **question, workspace=workspace)


def test_without_data_replay_names_the_missing_state_too(fake_hub: FakeHub, workspace: Workspace) -> None:
    add(REPO, workspace=workspace)

    done = forensics(workspace, "replay", "tiny-neox", "16:32")

    assert done.returncode == 1 and "has no optimizer state, only weights" in done.stderr


def test_weights_of_wrong_content_are_refused(tiny_hub: Workspace, fake_hub: FakeHub) -> None:
    """The client compares sizes alone; the hub states the hash."""
    fake_hub.cdn.plant(fake_hub.cdn_path(REPO, "step8", "model.safetensors"), faults.WrongContent(at=9000))

    with pytest.raises(CorruptFile, match="as its publisher states: the content is wrong"):
        read_weights(tiny_hub.checkpoint(tiny_hub.run("tiny"), 8))


def test_a_truncated_header_is_refused(tiny_hub: Workspace, fake_hub: FakeHub) -> None:
    path = fake_hub.cdn_path(REPO, "step8", "model.safetensors")
    fake_hub.cdn.plant(path, faults.WrongContent(at=3), forever=True)

    with pytest.raises(CorruptFile, match="claims a header of"):
        read_tensor(tiny_hub.checkpoint(tiny_hub.run("tiny"), 8), "gpt_neox.embed_in.weight")


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_is_refused_with_the_reason_and_the_ways_out(tiny_hub: Workspace) -> None:
    done: Done = forensics(tiny_hub, "replay", "tiny", "16:32")

    assert done.returncode == 1
    assert "checkpoint 16 of tiny has no optimizer state, only weights" in done.stderr
    assert "--fresh-optimizer" in done.stderr and "its publisher" in done.stderr


def test_from_checkpoint_0_a_fresh_optimizer_is_the_runs_own(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    """No moment was published; at initialization there is none, so the steps can be taken as they were."""
    run = add(REPO, data=tiny_neox.folder, workspace=workspace)

    first = replay(run.name, "0:8", fresh_optimizer=True, workspace=workspace)
    later = replay(run.name, "16:32", fresh_optimizer=True, workspace=workspace)

    # The trainer is transformers' own model and torch's AdamW here, in the same order: same bits, or very nearly.
    assert first.weight_distance is not None and first.weight_distance < 1e-5
    assert all(abs(row["loss"] - tiny_neox.losses[row["step"] - 1]) < 1e-4 for row in first.steps)
    assert later.grade == "unbanded" and any("started at zero" in note for note in later.notes)


# --- offline, faults of the hub --------------------------------------------------------------------------------------


def test_offline_answers_from_what_is_kept(
    tiny_hub: Workspace, tiny_neox: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_hub.run("tiny")
    batch("tiny", 3, tokens=True, workspace=tiny_hub)
    read_weights(tiny_hub.checkpoint(run, 8))
    read_tensor(tiny_hub.checkpoint(run, 16), "gpt_neox.embed_in.weight")
    offline(monkeypatch)

    rows = batch("tiny", 3, tokens=True, workspace=tiny_hub).column("token_ids").to_pylist()
    assert np.array_equal(np.array(rows), tiny_neox.rows[2])
    assert len(read_weights(tiny_hub.checkpoint(run, 8))) == 28
    assert read_tensor(tiny_hub.checkpoint(run, 16), "gpt_neox.embed_in.weight").shape == (512, 32)
    assert len(answer(tiny_hub, "checkpoints", "tiny")) == len(SAVED)
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        batch("tiny", 4, tokens=True, workspace=tiny_hub)
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        read_weights(tiny_hub.checkpoint(run, 32))
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        add(REPO, name="other", workspace=tiny_hub)


@pytest.mark.parametrize(
    "fault", [faults.ServerError(500), faults.BrokenConnection(), faults.NotFound("RepoNotFound")], ids=str
)
def test_a_hub_that_fails_is_a_stated_error(fault: faults.Fault, fake_hub: FakeHub, workspace: Workspace) -> None:
    fake_hub.plant(f"/api/models/{REPO}/refs", fault, forever=True)

    done = forensics(workspace, "add", REPO)

    assert done.returncode == 1 and done.stderr.startswith("asking ") and "forensics: " in done.stderr
    assert workspace.run_names() == []


# --- from the catalog ------------------------------------------------------------------------------------------------


def pythia_data(num_steps: int) -> tuple[np.ndarray, dict[str, bytes]]:
    """A pre-shuffled set of Pythia's own sizes: 1,024 rows of 2,049 tokens a step."""
    rows = np.random.default_rng(0).integers(0, 50_000, (num_steps * 1024, 2049), dtype=np.uint16)
    sizes = np.full(len(rows), 2049, dtype="<i4")
    pointers = np.arange(len(rows), dtype="<i8") * 4098
    starts = np.arange(len(rows) + 1, dtype="<i8")
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(rows), len(starts))
    content = rows.tobytes()
    border = 1024 * 4098 + 5000  # inside the second step
    return rows, {
        "document.idx": index + sizes.tobytes() + pointers.tobytes() + starts.tobytes(),
        "document-00000-of-00001.bin": content[:border],
        "document-00001-of-00001.bin": content[border:],
    }


@pytest.fixture
def pythia(fake_hub: FakeHub, tiny_neox: TinyRun) -> np.ndarray:
    """The catalog's pythia-160m and its data on the hub of loopback: two steps of its data, weights of a toy."""
    rows, files = pythia_data(2)
    fake_hub.add_repo("EleutherAI/pile-standard-pythia-preshuffled", {"main": files}, kind="dataset")
    revisions = {
        f"step{step}": {path.name: path.read_bytes() for path in folder.iterdir()}
        for step, folder in tiny_neox.checkpoints.items()
        if step <= 2
    }
    config = json.loads(revisions["step0"]["config.json"]) | {"vocab_size": 50304}
    main = revisions["step2"] | {"config.json": json.dumps(config).encode()}
    fake_hub.add_repo("EleutherAI/pythia-160m", revisions | {"main": main})
    return rows


def test_what_the_trainer_was_told_is_known_from_the_catalog_and_the_model(
    pythia: np.ndarray, workspace: Workspace
) -> None:
    add("pythia-160m", workspace=workspace)

    recipe = answer(workspace, "show", "pythia-160m")["recipe"]

    assert recipe["refused"].startswith("the NeoX config: fp16 with a loss scale")  # and nothing else
    told = recipe_of_run(workspace.run("pythia-160m"), approximate=True)
    assert (told.learning_rate, told.betas, told.weight_decay) == (6e-4, (0.9, 0.95), 0.1)
    assert told.learning_rate_of(1, 0, 0) == 0.0 and told.learning_rate_of(1431, 0, 0) == 6e-4
    assert told.learning_rate_of(115_140, 0, 0) == pytest.approx(6e-5, rel=1e-12)
    assert told.model["num_hidden_layers"] == 2 and told.model["hidden_size"] == 32


@pytest.mark.parametrize("source", ["pythia-160m", "EleutherAI/pythia-160m", "hub:EleutherAI/pythia-160m"])
def test_a_released_run_is_added_by_name(
    source: str, pythia: np.ndarray, fake_hub: FakeHub, workspace: Workspace
) -> None:
    done = forensics(workspace, "add", source)

    assert done.returncode == 0, done.stderr
    assert answer(workspace, "runs")[0]["source"] == "hub:EleutherAI/pythia-160m"
    assert [row["step"] for row in answer(workspace, "checkpoints", "pythia-160m")] == [0, 1, 2]


def test_a_batch_of_pythia_is_its_bytes_in_two_requests_at_most(
    pythia: np.ndarray, fake_hub: FakeHub, workspace: Workspace
) -> None:
    add("pythia-160m", workspace=workspace)
    for step, requests in ((1, 1), (2, 2)):  # the second lies across a border of shards
        sent, asked = fake_hub.cdn.body_bytes, sum(fake_hub.cdn.num_requests.values())
        rows = batch("pythia-160m", step, tokens=True, workspace=workspace).column("token_ids").to_numpy()

        assert np.array_equal(np.stack(rows), pythia[(step - 1) * 1024 : step * 1024])
        assert fake_hub.cdn.body_bytes - sent == 4_196_352
        assert sum(fake_hub.cdn.num_requests.values()) - asked == requests


def test_an_index_too_large_to_fetch_is_cut_by_its_header(
    pythia: np.ndarray, fake_hub: FakeHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pythia's is 2.9 GB; its header and the sizes of the shards say the same."""
    monkeypatch.setattr("data_index.sources.megatron_data.MAX_FETCHED_INDEX_BYTES", 1000)
    run = add("pythia-160m", workspace=workspace)

    path = fake_hub.cdn_path("EleutherAI/pile-standard-pythia-preshuffled", "main", "document.idx", "dataset")
    assert sum(request.body_bytes for request in fake_hub.cdn.requests_of(path)) == 34
    assert "of which only the header was read" in str(run.trust)
    rows = batch("pythia-160m", 2, tokens=True, workspace=workspace).column("token_ids").to_numpy()
    assert np.array_equal(np.stack(rows), pythia[1024:])


def test_what_the_catalog_knows_of_a_checkpoint_is_listed_with_it(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    fake_hub.add_repo("EleutherAI/pythia-2.8b", {name: files for name in ("main", "step1000", "step143000")})
    add("pythia-2.8b", workspace=workspace)

    issues: dict[int, Any] = {row["step"]: row["issues"] for row in answer(workspace, "checkpoints", "pythia-2.8b")}
    assert any("other_weights" in issue and "#205" in issue for issue in issues[1000])
    assert not any("other_weights" in issue for issue in issues[143000])


def test_olmo_2_is_added_with_the_checkpoints_of_its_first_stage(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config and data lie elsewhere; where those do not answer, the order is unknown, and it says so."""
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    names = ("main", "stage1-step0-tokens0B", "stage1-step150-tokens1B", "stage2-ingredient1-step1000-tokens5B")
    fake_hub.add_repo("allenai/OLMo-2-1124-7B", dict.fromkeys(names, files))
    monkeypatch.setattr("data_index.published.data.read_limited", _gone)

    run = add("allenai/OLMo-2-1124-7B", workspace=workspace)

    assert [c.step for c in workspace.checkpoints(run)] == [0, 150]
    assert run.trust.level == "unknown" and "peteish7" in run.trust.missing


def test_an_official_list_adds_checkpoints_with_all_states(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    names = ("main", "stage1-step0-tokens0B", "stage1-step150-tokens1B")
    fake_hub.add_repo("allenai/OLMo-2-1124-7B", dict.fromkeys(names, files))
    monkeypatch.setattr("data_index.published.data.read_limited", _gone)
    base = "https://olmo-checkpoints.org/ai2-llm/peteish7"
    (tmp_path / "OLMo-2-1124-7B.csv").write_text(
        f"Step,Checkpoint Directory\n0,{base}/step0-unsharded/\n150,{base}/step150-unsharded/\n"
        f"150,{base}/step150-unsharded/\n600,{base}/step700-unsharded/"
    )

    run = add("olmo-2-7b", listing=tmp_path / "OLMo-2-1124-7B.csv", workspace=workspace)

    rows = answer(workspace, "checkpoints", run.name)
    assert [(row["step"], len(row["states"])) for row in rows] == [(0, 1), (0, 3), (150, 1), (150, 3), (600, 3)]
    assert "the row says step 600, its address step 700" in rows[-1]["issues"][0]
    assert workspace.checkpoint(run, 150).layout == "olmo"  # where most states are


def _gone(remote: Any, max_bytes: int) -> bytes:
    raise MissingFile(f"{remote} is not there (the server answers 404)")


def test_servers_that_do_not_answer_leave_the_order_unknown(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    fake_hub.add_repo("allenai/OLMo-2-1124-7B", dict.fromkeys(("main", "stage1-step0-tokens0B"), files))

    def silent(remote: Any, max_bytes: int) -> bytes:
        raise Unreachable(f"{remote}: no answer")

    monkeypatch.setattr("data_index.published.data.read_limited", silent)

    run = add("olmo-2-7b", workspace=workspace)

    assert "no answer (try again: forensics remove olmo-2-7b --yes" in run.trust.missing


def test_the_environment_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder() == Path.home() / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub.cache_folder() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert hub.cache_folder() == Path("/h/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert hub.cache_folder() == Path("/c")
    assert os.environ["HF_HUB_CACHE"] == "/c"
