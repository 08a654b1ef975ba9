"""What a fork would be, told before it is one, is what it then is; and telling it changes nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_index.batch_queries import batch_rows, reader_of
from data_index.errors import ForensicsError, InvalidEdit, MissingState, UnsupportedRecipe
from data_index.registration import add
from data_index.text import decode
from data_index.workspace import Workspace
from forensics.fork_list import (
    Composition,
    composition_of,
    forks_of,
    is_being_written,
    recipe_fields_of,
    starts_of,
    steps_done,
    written_edit,
)
from forensics.fork_preview import EditPreview, ForkPreview, preview_fork
from forensics.forking import create_fork, fork, fork_request
from forensics.lookup import batch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.forensics.test_cli import answer, forensics
from tests.forensics.test_remote_runs import OLMO, write_manifest
from tests.servers.range_server import RangeServer


def preview(workspace: Workspace, *edits: str, **options: object) -> ForkPreview:
    asked = {"from_step": 5, "num_steps": 10, "edits": edits, "workspace": workspace, "device": "cpu"}
    return preview_fork("tiny", **asked | options)  # type: ignore[arg-type]


def counts(found: EditPreview) -> tuple[int, int, int, int]:
    return found.num_rows, found.num_instances, found.num_tokens, found.num_steps


def files_of(workspace: Workspace) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in workspace.folder.rglob("*")}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "import this"}\n{"text": "import that"}\n')
    return path


def test_a_preview_is_the_fork_that_is_made(tiny: Workspace, rows: Path) -> None:
    """Each edit is looked at in what the ones before it left, by the code that makes the fork."""
    first, second = batch("tiny", 9, workspace=tiny).column("instance").to_pylist()[:2]
    edits = (
        f"drop instance:{first} @9",
        f"repeat instance:{second} @9 times=3",
        f"repeat instance:{second} @9",
        f"insert with={rows} @10",
        "shuffle @10:12 seed=1",
        "swap @6 with=7",
    )
    before = files_of(tiny)
    found = preview(tiny, *edits, overrides={"recipe.learning_rate": 1e-4})
    assert files_of(tiny) == before and found.done is None
    asked = fork_request(tiny, "tiny", 5, 10, edits=edits, overrides={"recipe.learning_rate": 1e-4}, device="cpu")
    create_fork(tiny, asked, tiny.folder / "forks" / found.id)

    assert "; ".join(edit.said for edit in found.edits) == forks_of(tiny)[0]["edits"]
    assert [counts(edit) for edit in found.edits] == [
        (1, 1, 64, 1),
        (1, 1, 64, 1),
        (3, 1, 3 * 64, 1),  # what the edit before made of it
        (2, 2, 2 * 64, 1),
        (16, 16, 16 * 64, 2),
        (16, 16, 16 * 64, 2),
    ]
    assert found.recipe == (("recipe.learning_rate", pytest.approx(0.003), 1e-4),)
    # 10 steps of 8 rows, one dropped, 2 + 3 repeated, 2 inserted
    assert found.cost.tokens == (80 - 1 + 2 + 3 + 2) * 64 == batch(found.id, "5:15", workspace=tiny).num_rows * 64
    assert preview(tiny, *edits, overrides={"recipe.learning_rate": 1e-4}).done == 0


def test_the_rows_that_are_shown_are_those_that_are_hit(tiny_shared: Workspace) -> None:
    (edit,) = preview(tiny_shared, "drop where:\"source LIKE '%.pyc.z'\" @9").edits
    there = {row["instance"]: row for row in batch("tiny", 9, workspace=tiny_shared).to_pylist()}
    run = tiny_shared.run("tiny")
    ids = reader_of(tiny_shared, run).rows([row["instance"] for row in edit.rows])

    assert edit.num_rows == len(edit.rows) == 2
    for row, tokens in zip(edit.rows, ids, strict=True):
        known = there[row["instance"]]
        assert (row["step"], row["row"]) == (9, list(there).index(row["instance"]))
        assert (row["file"], row["offset"], row["documents"]) == (known["file"], known["offset"], known["document_ids"])
        assert row["tokens"] == "0-64" and all(source.endswith(".pyc.z") for source in row["sources"])
        assert row["text"] and row["text"][:3] == decode(run, tokens)[:3]


def test_of_a_mask_its_tokens_are_counted(tiny_shared: Workspace) -> None:
    span, wide = preview(tiny_shared, "mask span:50:10-20", "mask span:50:15-40").edits
    document = batch("tiny", 9, workspace=tiny_shared).to_pylist()[0]["document_ids"][0]
    (whole,) = preview(tiny_shared, f"mask document:{document}").edits
    spans = sum(int(stop) - int(start) for row in whole.rows for start, stop in [row["tokens"].split("-")])

    assert counts(span) == (1, 1, 10, 1) and counts(wide) == (1, 1, 25, 1)
    assert span.rows[0]["tokens"] == "10-20" and span.rows[0]["step"] == 11
    assert whole.num_tokens == spans < whole.num_rows * 64 and whole.rows[0]["documents"] == [document]


def test_rows_of_a_file_show_their_text(tiny_shared: Workspace, rows: Path) -> None:
    (edit,) = preview(tiny_shared, f"insert with={rows} @10:12").edits

    assert counts(edit) == (4, 2, 4 * 64, 2) and [row["row"] for row in edit.rows] == [8, 9, 8, 9]
    assert edit.rows[1]["text"].startswith("import that") and edit.rows[0]["file"] == "given rows"


@pytest.mark.parametrize(
    ("edits", "number", "message"),
    [
        (["shuffle", "delete all"], 1, "names no operation"),
        (["shuffle", "shuffle", "mask document:99999"], 2, "no row of steps 6..15 of tiny is document:99999"),
        (["drop instance:1 @99"], 0, "reaches outside the fork"),
        (['drop where:"nonsense = 1"', "shuffle"], 0, "cannot be answered"),
        (['drop where:"true" @9', "shuffle"], 0, "step 9 is left without a row"),
        (["shuffle", "insert with=/nowhere/rows.jsonl @9"], None, "/nowhere/rows.jsonl"),
        (["repeat instance:50 times=99999999"], 0, "at most 10,000 times"),
        (["shuffle seed=" + "9" * 5000], 0, "not a whole number"),
        (["drop instance:1 @" + "9" * 5000], 0, "neither a step nor a range"),
    ],
)
def test_an_error_says_which_edit_it_is_of(
    tiny_shared: Workspace, edits: list[str], number: int | None, message: str
) -> None:
    with pytest.raises(ForensicsError, match=message) as caught:
        preview(tiny_shared, *edits)
    assert caught.value.edit_number == number


def test_files_are_not_looked_at_for_who_may_not(tiny_shared: Workspace, rows: Path) -> None:
    """Whoever looks from another machine must not learn which files there are."""
    said = []
    for path in (rows, Path("/nowhere/rows.jsonl")):
        with pytest.raises(InvalidEdit, match="names a file") as caught:
            preview(tiny_shared, "shuffle", f"insert with={path} @9", guest=True)
        assert caught.value.edit_number == 1
        said.append(str(caught.value).replace(str(path), "FILE"))

    assert said[0] == said[1]
    assert preview(tiny_shared, "insert with=instance:50 @9", guest=True).edits[0].num_rows == 1


def test_wrong_recipes_and_starts_are_refused_as_by_the_fork(tiny_shared: Workspace) -> None:
    with pytest.raises(UnsupportedRecipe, match="no field 'recipe.nonsense'"):
        preview(tiny_shared, overrides={"recipe.nonsense": 1})
    with pytest.raises(ForensicsError, match="the nearest are 5 and 10"):
        preview(tiny_shared, from_step=7)
    assert "equal its parent" in preview(tiny_shared).notes[0]


def test_every_field_that_is_offered_can_be_set(tiny_shared: Workspace) -> None:
    fields = recipe_fields_of(tiny_shared, "tiny")
    same = preview(tiny_shared, num_steps=1, overrides=fields)

    assert {"recipe.learning_rate", "recipe.schedule.warmup_steps", "recipe.precision"} <= set(fields)
    assert same.recipe == ()


# --- what is written down --------------------------------------------------------------------------------------------


def test_a_fork_can_be_composed_again(tiny: Workspace) -> None:
    """Its command, read back from what is kept of it, makes the same fork."""
    edits = ["drop where:\"source LIKE '%.pyc.z'\" @9", "mask span:50:1-3", "shuffle @5:7 seed=2"]
    found = fork(
        "tiny", from_step=5, num_steps=8, edits=edits, overrides={"recipe.learning_rate": 1e-4}, workspace=tiny
    )
    again = composition_of(tiny, found.id)

    assert again == Composition(
        run="tiny", from_step=5, num_steps=8, edits=tuple(edits), settings=("recipe.learning_rate=0.0001",)
    )
    seen = preview(tiny, *again.edits, num_steps=8, overrides={"recipe.learning_rate": 1e-4})
    assert seen.id == found.id and seen.done == steps_done(tiny, found.id) == 8
    assert again.arguments()[:6] == ("fork", "tiny", "--from", "5", "--num-steps", "8")
    assert not is_being_written(tiny, found.id) and steps_done(tiny, "none") is None


def test_an_edit_is_written_from_its_parts() -> None:
    condition = "source LIKE 'a \"b\"' \n AND step < 9"
    text = written_edit("drop", ("where", condition), " 154 ", {"rescale": "false", "with": " "})

    assert text == 'drop where:"source LIKE \'a \\"b\\"\'   AND step < 9" @154 rescale=false'
    assert written_edit("swap", None, "@137", {"with": "150"}) == "swap @137 with=150"
    with pytest.raises(InvalidEdit, match="does not say which rows"):
        written_edit("drop", ("instance", " "), "", {})


def test_where_a_fork_can_start(tiny: Workspace, tiny_copy: Path) -> None:
    (tiny_copy / "checkpoints" / "step10" / "optimizer.safetensors").unlink()
    found = {start.step: start.obstacle for start in starts_of(tiny, "tiny")}

    assert found == {0: "", 5: "", 10: "it has no optimizer state", 15: "", 20: "what comes after it is not known"}
    with pytest.raises(MissingState):
        preview(tiny, from_step=10, num_steps=2)
    assert [s.step for s in starts_of(tiny, "tiny", fresh_optimizer=True) if not s.obstacle] == [0, 5, 10, 15]
    fresh = preview(tiny, from_step=10, num_steps=2, fresh_optimizer=True)
    assert any("begins at zero" in note for note in fresh.notes)
    asked = Composition(run="tiny", from_step=10, num_steps=2)
    assert replace(asked, fresh_optimizer=True).arguments() == (*asked.arguments(), "--fresh-optimizer")


def test_the_command_line_prints_the_preview(tiny_shared: Workspace) -> None:
    asked = ["fork", "tiny", "--from", "5", "--num-steps", "10", "--edit", "mask span:50:10-20", "--plan"]
    found = answer(tiny_shared, *asked)
    done = forensics(tiny_shared, *asked)

    assert found["id"] == preview(tiny_shared, "mask span:50:10-20").id and found["done"] is None
    assert (found["steps"], found["tokens"], found["download"]) == (10, 10 * 8 * 64, 0)
    assert found["edits"][0]["num_tokens"] == 10 and found["edits"][0]["rows"][0]["instance"] == 50
    assert "1 rows, 1 instances, 10 tokens, 1 steps" in done.stdout and "there is no fork like this" in done.stderr
    assert found["id"] in forensics(tiny_shared, *asked, "--format", "csv").stdout
    assert not (tiny_shared.folder / "forks").exists()


def test_a_preview_fetches_no_token(
    range_server: RangeServer, hub_environment: Path, workspace: Workspace, tmp_path: Path
) -> None:
    for path in [*OLMO.glob("data/*.npy"), *OLMO.glob("run/step10-unsharded/*")]:
        if path.is_file():
            range_server.files[f"/olmo/{path.relative_to(OLMO)}"] = path.read_bytes()
    run = add(write_manifest(tmp_path / "m", range_server), workspace=workspace)
    before = len(range_server.log)
    instance = batch_rows(workspace, run, 11, 12).column("instance").to_pylist()[0]
    edits = [f"drop instance:{instance} @12 rescale=false"]
    asked = {"from_step": 10, "num_steps": 2, "edits": edits, "workspace": workspace, "device": "cpu"}
    assert preview_fork(run.name, **asked, guest=True).download is None
    assert len(range_server.log) == before
    found = preview_fork(run.name, **asked)
    (edit,) = found.edits

    assert edit.num_rows == 1 and edit.rows[0]["text"] is None and edit.rows[0]["instance"] == instance
    assert found.download and not [asked for asked in range_server.log[before:] if "/data/" in asked.path]
