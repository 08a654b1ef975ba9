"""What is packed here is opened elsewhere as it was: findings, runs, forks, runs that failed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from data_index.batch_queries import reader_of
from data_index.errors import FindingExists, InvalidRange, MissingCheckpoint, MissingFile, RunExists, UnknownRun
from data_index.files import canonical_json, sha256_of_file
from data_index.pack_reading import read_pack
from data_index.registration import add
from data_index.store import run_query
from data_index.workspace import Workspace, read_current
from forensics import page_sections
from forensics.figure import Figure, picture
from forensics.finding import keep_finding, read_finding
from forensics.forking import fork
from forensics.imported_metrics import import_metrics
from forensics.lookup import at, batch
from forensics.opening import open_pack
from forensics.pack_budget import bytes_of_budget
from forensics.packed_checkpoints import chosen_first
from forensics.packing import pack
from forensics.plain_values import to_plain
from forensics.reproduction import replay
from forensics.spike_detection import spikes
from replay.weights import read_optimizer, read_weights
from tests.conftest import FIXTURES
from tests.forensics.packs import EVIL, INSTANCES, finding, homes

EVERYTHING = 10**9


@pytest.fixture(scope="module", autouse=True)
def _drawn_once() -> Iterator[None]:
    """Drawing takes most of the time of a pack; the same picture is drawn once."""
    pictures: dict[bytes, bytes] = {}

    def kept(figure: Figure, form: Literal["png", "svg"]) -> bytes:
        key = canonical_json(to_plain(figure))
        if key not in pictures:
            pictures[key] = picture(figure, form)
        return pictures[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_sections, "picture", kept)
        yield


@pytest.fixture(scope="module")
def sender(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with `tiny`, its spikes, two findings, and a fork of it."""
    workspace = Workspace(tmp_path_factory.mktemp("sender"))
    add(tiny_source, workspace=workspace)
    spikes("tiny", workspace=workspace)
    keep_finding(workspace, finding())
    keep_finding(workspace, finding(name="spikes-tiny", verb="spikes", texts=(), figure=None))
    fork("tiny", from_step=5, num_steps=5, edits=["shuffle @7 seed=1"], workspace=workspace, device="cpu")
    return workspace


@pytest.fixture(scope="module")
def whole(sender: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of `tiny` with all of its checkpoints and tokens."""
    path = tmp_path_factory.mktemp("packs") / "tiny.zip"
    done = pack("tiny", path, budget=EVERYTHING, tokens=True, workspace=sender)
    assert done.left_out == [] and done.sha256 == sha256_of_file(path)
    return path


@pytest.fixture(scope="module")
def receiver(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clean workspace in which that pack was opened."""
    workspace = Workspace(tmp_path_factory.mktemp("receiver") / "new")
    open_pack(whole, workspace=workspace)
    return workspace


# --- findings --------------------------------------------------------------------------------------------------------


def test_a_finding_opens_on_a_clean_workspace_as_it_was_kept(
    sender: Workspace, workspace: Workspace, tmp_path: Path
) -> None:
    done = pack("blame-tiny-8", tmp_path / "f.zip", workspace=sender)
    said: list[str] = []
    opened = open_pack(tmp_path / "f.zip", workspace=workspace, progress=said.append)
    rows = run_query(workspace, "select finding, runs, command from findings").to_pylist()

    assert said[0].startswith(f"sha256 {done.sha256} ") and opened.sha256 == done.sha256
    assert (opened.what, opened.name, opened.toolkit) == ("finding", "blame-tiny-8", "0.1.0")
    assert opened.path.read_bytes() == (sender.folder / "findings" / "blame-tiny-8.json").read_bytes()
    assert rows == [{"finding": "blame-tiny-8", "runs": ["tiny"], "command": "forensics blame tiny 8"}]


def test_a_pack_of_a_finding_holds_what_it_rests_on(sender: Workspace, tmp_path: Path) -> None:
    pack("blame-tiny-8", tmp_path / "f.zip", workspace=sender)
    found = read_pack(tmp_path / "f.zip")
    run, home = sender.run("tiny"), sender.home("tiny")
    (tmp_path / "rows.npy").write_bytes(found.read("rows/tiny.npy"))
    rows = np.load(tmp_path / "rows.npy", allow_pickle=False)
    texts = pyarrow.parquet.read_table(pyarrow.BufferReader(found.read("rows/tiny.parquet"))).to_pylist()
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(found.read("tables/candidates.parquet")))
    inputs = json.loads(found.read("runs/tiny/inputs.json"))
    record = tomllib.loads(found.read("runs/tiny/run.toml").decode())

    wanted = list(dict.fromkeys(INSTANCES))
    assert np.array_equal(rows, reader_of(sender, run).rows(wanted)) and [r["instance"] for r in texts] == wanted
    assert all(r["text"] for r in texts)
    assert table.column("loss").to_pylist() == [1.5, float("inf"), float("inf")]
    assert inputs["run_toml_sha256"] == inputs["when_made"]["run_toml"] == sha256_of_file(home / "run.toml")
    assert inputs["token_files"][0]["sha256"] == sha256_of_file(run.files[0].on_disk)
    assert [row["step"] for row in inputs["checkpoints"]] == [0, 5, 10, 15, 20]
    assert all(len(row["weights_sha256"]) == 64 for row in inputs["checkpoints"])
    assert str(sender.folder.parent) not in str(record) and record["files"][0]["path"] == "tokens/00000.bin"


def test_pages_of_packs_obey_nothing_in_the_data(sender: Workspace, tmp_path: Path) -> None:
    pack("blame-tiny-8", tmp_path / "f.zip", workspace=sender)
    pack("tiny", tmp_path / "r.zip", budget=0, workspace=sender)
    for path in ("f.zip", "r.zip"):
        page = read_pack(tmp_path / path).read("index.html").decode()
        assert EVIL not in page and "<script" not in page and "data:image/png;base64," in page
        assert "default-src 'none'" in page and "http://" not in page
    assert (
        page.count("Finding blame-tiny-8") == 1
        and "&lt;script&gt;" in read_pack(tmp_path / "f.zip").read("index.html").decode()
    )


def test_a_finding_whose_run_is_not_here_breaks_nothing(
    sender: Workspace, workspace: Workspace, tmp_path: Path
) -> None:
    pack("blame-tiny-8", tmp_path / "f.zip", workspace=sender)
    open_pack(tmp_path / "f.zip", workspace=workspace)
    again = pack("blame-tiny-8", tmp_path / "again.zip", workspace=workspace)

    assert [row["part"] for row in again.left_out] == ["record of tiny", "2 token rows of tiny"]
    assert "no run or fork is called 'tiny'" in again.left_out[0]["why"]
    assert open_pack(tmp_path / "again.zip", workspace=workspace).name == "blame-tiny-8"


def test_a_finding_takes_no_place_of_another(sender: Workspace, tiny: Workspace, tmp_path: Path) -> None:
    keep_finding(tiny, finding(command="forensics blame tiny 8 --top 3"))
    pack("blame-tiny-8", tmp_path / "f.zip", workspace=sender)
    with pytest.raises(FindingExists, match="another name with --name"):
        open_pack(tmp_path / "f.zip", workspace=tiny)
    opened = open_pack(tmp_path / "f.zip", name="theirs", workspace=tiny)

    assert opened.path.name == "theirs.json" and read_finding(tiny, "theirs").command == "forensics blame tiny 8"
    assert read_finding(tiny, "blame-tiny-8").command.endswith("--top 3")


def test_the_same_content_gives_the_same_pack(
    sender: Workspace, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_sections, "picture", picture)
    one = pack("blame-tiny-8", tmp_path / "a.zip", workspace=sender)
    two = pack("blame-tiny-8", tmp_path / "b.zip", workspace=sender)
    run = pack("tiny", tmp_path / "tiny.zip", budget=EVERYTHING, tokens=True, workspace=sender)

    assert one.sha256 == two.sha256 == hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    assert run.sha256 == sha256_of_file(whole)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_an_opened_run_answers_as_it_did(sender: Workspace, receiver: Workspace) -> None:
    question = "select * exclude (run) from {} where run = 'tiny' order by all"
    for view in ("metrics", "spikes", "documents", "segments", "batches", "checkpoints"):
        query = question.format(view).replace("(run)", "(run, location)" if view == "checkpoints" else "(run)")
        assert run_query(receiver, query).equals(run_query(sender, query)), view
    theirs, ours = at("tiny", 7, workspace=sender), at("tiny", 7, workspace=receiver)
    assert {key: theirs[key] for key in theirs if key != "forks"} == {key: ours[key] for key in ours if key != "forks"}
    assert batch("tiny", 7, tokens=True, workspace=receiver).equals(batch("tiny", 7, tokens=True, workspace=sender))
    assert receiver.run("tiny").trust.level == "exact"
    assert set(read_current(receiver.home("tiny"))) == {k for k, v in read_current(sender.home("tiny")).items() if v}


def test_an_opened_run_is_replayed_bit_for_bit(receiver: Workspace) -> None:
    assert replay("tiny", "5:10", workspace=receiver, device="cpu").grade == "R0"


def test_findings_of_a_run_come_with_it(receiver: Workspace) -> None:
    names = {row["finding"] for row in run_query(receiver, "from findings").to_pylist()}

    assert {"blame-tiny-8", "spikes-tiny"} <= names
    assert receiver.run("tiny").facts["pack"].startswith("tiny, sha256 ")


def test_a_run_without_tokens_and_checkpoints_answers_what_it_can(
    sender: Workspace, workspace: Workspace, tmp_path: Path
) -> None:
    done = pack("tiny", tmp_path / "r.zip", budget=500_000, workspace=sender)
    opened = open_pack(tmp_path / "r.zip", workspace=workspace)

    assert len(batch("tiny", 7, workspace=workspace)) == 8 and at("tiny", 7, workspace=workspace)["metrics"]["loss"] > 0
    assert spikes("tiny", workspace=workspace).rows == spikes("tiny", workspace=sender).rows
    assert any("token files of tiny are not in the pack" in message for message in opened.messages)
    assert {row["part"] for row in done.left_out} >= {"3 token files"}
    with pytest.raises(MissingFile, match=r"tokens/0000\d.bin"):
        batch("tiny", 7, tokens=True, workspace=workspace)
    with pytest.raises((MissingCheckpoint, MissingFile)):
        replay("tiny", "5:10", workspace=workspace, device="cpu")
    trust = workspace.run("tiny").trust
    assert trust.level == "derived" and "a record of the token ids" in trust.missing


def test_token_files_that_come_later_are_held_against_their_hashes(
    sender: Workspace, workspace: Workspace, tmp_path: Path
) -> None:
    pack("tiny", tmp_path / "r.zip", budget=EVERYTHING, workspace=sender)
    open_pack(tmp_path / "r.zip", workspace=workspace)
    mine, theirs = workspace.run("tiny"), sender.run("tiny")
    for place, file in zip((*mine.files, *mine.heldout), (*theirs.files, *theirs.heldout), strict=True):
        place.on_disk.parent.mkdir(exist_ok=True)
        shutil.copyfile(file.on_disk, place.on_disk)

    assert replay("tiny", "5:10", workspace=workspace, device="cpu").grade == "R0"
    mine.files[1].on_disk.write_bytes(b"\1" * mine.files[1].num_bytes)
    with pytest.raises(ValueError, match="00001.bin"):
        batch("tiny", 7, tokens=True, workspace=workspace)


def test_a_fork_opens_without_its_parent(sender: Workspace, workspace: Workspace, tmp_path: Path) -> None:
    (name,) = sender.fork_ids()
    pack(name, tmp_path / "f.zip", budget=EVERYTHING, tokens=True, workspace=sender)
    open_pack(tmp_path / "f.zip", workspace=workspace)
    run = workspace.run(name)

    assert run.parent is None and run.facts["parent"] == "tiny at step 5" and run.tokens_after(5) == 5 * 8 * 64
    assert [c.step for c in workspace.checkpoints(run)] == [5, 10] and run.trust.level == "exact"
    assert replay(name, "5:10", workspace=workspace, device="cpu").grade == "R0"
    assert "shuffle" in (workspace.home(name) / "fork.toml").read_text()


def test_a_name_that_is_taken_is_said_before_anything_is_written(whole: Path, tiny: Workspace) -> None:
    with pytest.raises(RunExists, match="another name with --name"):
        open_pack(whole, workspace=tiny)
    open_pack(whole, name="theirs", workspace=tiny)

    assert tiny.run_names() == ["theirs", "tiny"]
    rows = run_query(tiny, "select finding, runs from findings order by finding").to_pylist()
    assert rows[0] == {"finding": "blame-tiny-8-theirs", "runs": ["theirs"]}


def test_checkpoints_of_another_trainer_are_packed_in_the_native_form(workspace: Workspace, tmp_path: Path) -> None:
    """Its states are pickles and sharded files, which no pack holds; the next steps are the same."""
    add(FIXTURES / "olmo-core" / "skipstep", name="skip", workspace=workspace)
    done = pack("skip", tmp_path / "s.zip", tokens=True, workspace=workspace)
    opened = Workspace(tmp_path / "other")
    open_pack(tmp_path / "s.zip", workspace=opened)
    there, here = (w.checkpoint(w.run("skip"), 10) for w in (workspace, opened))

    assert done.left_out == [] and opened.run("skip").config_format == "olmo_core"
    assert here.states == ("weights", "optimizer", "trainer") and here.layout == "native" != there.layout
    assert_equal(read_weights(here), read_weights(there))
    for moment, tensors in read_optimizer(there).items():
        assert_equal(read_optimizer(here)[moment], tensors)
    assert opened.run("skip").trust == workspace.run("skip").trust


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_failed_is_packed_with_where_it_failed(workspace: Workspace, tmp_path: Path) -> None:
    log = "".join(f"{step},{2.0 if step < 40 else float('nan')},{0.5}\n" for step in range(1, 44))
    (tmp_path / "log.csv").write_text(f"step,loss,grad_norm\n{log}")
    import_metrics("broken", str(tmp_path / "log.csv"), new=True, workspace=workspace)
    pack("broken", tmp_path / "b.zip", workspace=workspace)
    other = Workspace(tmp_path / "other")
    open_pack(tmp_path / "b.zip", workspace=other)
    card = tomllib.loads((other.home("broken") / "card.toml").read_text())

    assert card["failed"]["last_logged_step"] == 43 and card["failed"]["num_not_finite"] == 4
    assert card["failed"]["not_finite"][0] == {"step": 40, "metric": "loss"}
    assert {"metric": "loss", "step": 43, "value": "nan"} in card["failed"]["last_values"]
    counted = run_query(other, "select count(*) n from metrics where run = 'broken' and name = 'grad_norm'").to_pylist()
    assert counted == [{"n": 43}]
    page = read_pack(tmp_path / "b.zip").read("index.html").decode()
    assert "loss at step 40" in page and other.run("broken").last_step == 43


# --- the budget ------------------------------------------------------------------------------------------------------


def test_checkpoints_worth_most_come_first() -> None:
    steps = list(range(0, 110, 10))

    assert chosen_first(steps, [35]) == [100, 0, 30, 40, 70, 10, 20, 50, 60, 80, 90]
    assert chosen_first(steps, [40, 1000])[:5] == [100, 0, 30, 40, 70]  # the last one is before 1000
    assert chosen_first(steps, [])[:3] == [100, 0, 50]
    assert chosen_first([7], [3]) == [7] and chosen_first([], [3]) == []


def test_a_plan_says_what_would_go_in(sender: Workspace, tmp_path: Path) -> None:
    for budget in (500_000, EVERYTHING):
        planned = pack("tiny", tmp_path / "p.zip", budget=budget, tokens=True, plan=True, workspace=sender)
        assert not (tmp_path / "p.zip").exists()
        done = pack("tiny", tmp_path / f"{budget}.zip", budget=budget, tokens=True, workspace=sender)
        assert planned.parts == done.parts and done.num_bytes <= max(budget, planned.num_bytes)
    assert planned.num_bytes * 0.8 < done.num_bytes <= planned.num_bytes


def test_a_budget_is_kept_and_what_it_leaves_out_is_told(sender: Workspace, tmp_path: Path) -> None:
    done = pack("tiny", tmp_path / "p.zip", budget="600kB", workspace=sender)
    steps = sorted({path.split("/")[1] for path in read_pack(tmp_path / "p.zip").below("checkpoints")})

    assert done.num_bytes <= 600_000 and 0 < len(steps) < 5 and "step20" in steps
    assert any("does not fit" in row["why"] for row in done.left_out)
    assert read_pack(tmp_path / "p.zip").told["left_out"] == [dict(row) for row in done.left_out]


def test_budgets_are_read() -> None:
    assert [bytes_of_budget(text) for text in ("7", "2GB", "500 mb", "1.5GiB")] == [7, 2 * 10**9, 5 * 10**8, 3 * 2**29]
    for text in ("", "GB", "-1", "2 parsecs", "1e9"):
        with pytest.raises(InvalidRange, match="--budget takes"):
            bytes_of_budget(text)


def test_what_cannot_be_packed_is_said(sender: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownRun, match="nor is a finding, of which there are: .*blame-tiny-8"):
        pack("nothing", tmp_path / "p.zip", workspace=sender)
    with pytest.raises(InvalidRange, match="a pack is FILE.zip"):
        pack("tiny", tmp_path / "p.tar", workspace=sender)
    with pytest.raises(MissingFile, match="is not a folder"):
        pack("tiny", tmp_path / "none" / "p.zip", workspace=sender)
    assert homes(Workspace(tmp_path)) == [] and list(tmp_path.iterdir()) == []
