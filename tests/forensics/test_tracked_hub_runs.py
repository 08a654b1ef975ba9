"""`tokens --track` of a run whose checkpoints and data are on a server, and from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import TooMuchToFetch
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.path_reading import opened
from forensics.token_path_rows import SUMMARY
from forensics.token_paths import token_paths
from tests.forensics.test_cli import answer, forensics
from tests.forensics.test_hub_runs import DATA, TOLD
from tests.servers.fake_hub import FakeHub
from tests.servers.tiny_neox import LENGTH, REPO, ROWS, SAVED, STEPS, VOCABULARY, TinyRun

MATRIX_BYTES = VOCABULARY * 32 * 4
TOKEN_BYTES = STEPS * ROWS * (LENGTH + 1) * 2


@pytest.fixture
def hub_run(fake_hub: FakeHub, workspace: Workspace) -> Workspace:
    """The hub's tiny run, named `tiny`; nothing of its tensors and tokens has been fetched."""
    add(REPO, name="tiny", data=DATA, settings=TOLD, workspace=workspace)
    return workspace


def test_what_would_be_fetched_is_summed_first(hub_run: Workspace, fake_hub: FakeHub) -> None:
    """Both matrices of the last checkpoint, one of each other: refused before a byte of a tensor is fetched."""
    wanted = (2 + len(SAVED) - 1) * MATRIX_BYTES
    plan = answer(hub_run, "tokens", "tiny", "--track", "--plan")
    of_checkpoints = [row for row in plan if row["what"] == "checkpoint"]

    assert [row["step"] for row in of_checkpoints] == list(SAVED)
    assert sum(row["bytes_to_fetch"] for row in of_checkpoints) == wanted
    assert plan[-1]["what"] == "all" and plan[-1]["bytes_to_fetch"] == wanted + TOKEN_BYTES
    before = fake_hub.cdn.body_bytes
    with pytest.raises(
        TooMuchToFetch, match=f"9 checkpoints of tiny would fetch {wanted:,} bytes.*--max-fetch {wanted}"
    ):
        token_paths("tiny", max_fetch=wanted - 1, workspace=hub_run)
    assert fake_hub.cdn.body_bytes - before < MATRIX_BYTES
    choice = token_paths("tiny", checkpoints=[0, 64], workspace=hub_run).choice
    left = [row for row in answer(hub_run, "tokens", "tiny", "--track", "--plan") if row["what"] == "checkpoint"]
    name = "gpt_neox.embed_in.weight" if choice.indicator == "input_norm" else "embed_out.weight"
    assert [(row["tensors"], row["bytes_to_fetch"]) for row in left] == [([name], MATRIX_BYTES)] * (len(SAVED) - 2)


def test_matrices_alone_are_fetched_where_the_tokens_are_too_much(
    hub_run: Workspace, fake_hub: FakeHub, tiny_neox: TinyRun
) -> None:
    wanted = (2 + len(SAVED) - 1) * MATRIX_BYTES
    before = fake_hub.cdn.body_bytes
    found = token_paths("tiny", max_fetch=wanted + TOKEN_BYTES - 1, workspace=hub_run)

    assert found.num_bytes == wanted <= fake_hub.cdn.body_bytes - before < 1.2 * wanted
    assert found.exposures is None and any("TooMuch" in m or "would fetch" in m for m in found.messages)
    with_counts = token_paths("tiny", max_fetch=TOKEN_BYTES, workspace=hub_run)
    assert with_counts.num_bytes == 0 and with_counts.exposures is not None
    rows = tiny_neox.rows.reshape(-1, LENGTH + 1)
    assert np.array_equal(with_counts.exposures.as_input[-1], np.bincount(rows[:, :-1].ravel(), minlength=VOCABULARY))
    assert np.array_equal(with_counts.exposures.as_target[-1], np.bincount(rows[:, 1:].ravel(), minlength=VOCABULARY))


def test_without_an_order_there_are_paths_without_counts(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    run = add(REPO, workspace=workspace)
    tracking = opened(workspace, run, [0, 64], tokenizer=tiny_neox.tokenizer)
    found = token_paths(run.name, checkpoints=[0, 64], tokenizer=tiny_neox.tokenizer, workspace=workspace)

    assert [c.step for c in tracking.tracked] == found.steps == [0, 64] and found.exposures is None
    assert any("what the steps of tiny-neox read is not known" in message for message in found.messages)
    plan = answer(workspace, "tokens", run.name, "--track", "--plan", "--tokenizer", str(tiny_neox.tokenizer))
    assert "not known" in next(row["note"] for row in plan if row["what"] == "exposures")


# --- the command line ------------------------------------------------------------------------------------------------


def test_tracking_has_the_documented_keys(tiny: Workspace, tmp_path: Path) -> None:
    before = answer(tiny, "tokens", "tiny", "--track", "--plan")
    rows = answer(tiny, "tokens", "tiny", "--track", "--report", str(tmp_path / "r.md"))

    assert tuple(rows[0]) == SUMMARY and len(rows) == 384 and rows[0]["finding"] == "never read"
    assert {row["what"] for row in before} == {"checkpoint", "exposures", "documents and tags", "all"}
    assert (tmp_path / "r.md").exists() and (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    (*_, exposures, documents, whole) = answer(tiny, "tokens", "tiny", "--track", "--plan")
    assert (exposures["note"], documents["note"]) == ("counted before", "gathered before")
    assert whole["bytes_to_read"] == 0 and "5 of 5 checkpoints" in whole["note"]
    done = forensics(tiny, "tokens", "tiny", "--track", "--checkpoints", "every 10", "-o", str(tmp_path / "t.csv"))
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert done.returncode == 0 and {line["step"] for line in lines} == {"0", "10", "20"}
    assert "precision" in done.stderr and "0 bytes of tensors read now" in done.stderr


def test_the_table_shows_some_tokens_of_each_finding(tiny: Workspace) -> None:
    shown = forensics(
        tiny, "tokens", "tiny", "--track", "--indicator", "output_cosine_to_unused", "--unused", "125,126"
    )
    rows = json.loads(forensics(tiny, "tokens", "tiny", "--track", "--limit", "3", "--format", "json").stdout)

    assert all(finding in shown.stdout for finding in ("never read", "hardly read")) and len(rows) == 3
    assert shown.stdout.count("never read") == 12 and "of 384" in shown.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--checkpoints", "0,20"], ["--track", "--checkpoints", "some"], ["--track", "--checkpoint", "20"]],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_usage_errors(tiny_shared: Workspace, arguments: list[str]) -> None:
    assert forensics(tiny_shared, "tokens", "tiny", *arguments).returncode == 2
