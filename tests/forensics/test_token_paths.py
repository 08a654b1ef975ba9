"""`tokens --track`: paths on the tiny run against counting by hand, and findings on planted paths."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_index.batch import read_batches
from data_index.batch_queries import plan_of, reader_of
from data_index.document_queries import spans_of_instances
from data_index.errors import InvalidRange, MissingCheckpoint
from data_index.registration import add
from data_index.store import opened_for
from data_index.token_categories import TokenizerAnalysis, analyse_tokenizer
from data_index.workspace import Workspace
from forensics import gathered_origins, sql, token_origins
from forensics.counting_plan import count_of
from forensics.forking import fork
from forensics.gathered_origins import OTHER, OriginsOfTokens
from forensics.kept_paths import Choice, PathPoint
from forensics.kept_token_paths import COLUMNS as KEPT
from forensics.kept_token_paths import kept_token_paths
from forensics.path_exposures import PathExposures, path_exposures
from forensics.token_counts import exposures
from forensics.token_page import token_page
from forensics.token_path_answer import TokenPaths, answered, counted_for
from forensics.token_path_report import path_facts, write_path_report
from forensics.token_path_rows import FELL_BACK, HARDLY_READ, NEVER_READ, READ_UNTRAINED, SUMMARY
from forensics.token_paths import token_paths
from forensics.undertrained_tokens import tokens
from probes.embedding_indicators import INPUT_NORM, OUTPUT_COSINE
from probes.untrained_cluster import UntrainedCluster
from tests.data_index.test_token_categories import byte_level

ROWS, MATRIX_BYTES = 384, 384 * 32 * 4


@pytest.fixture(scope="module")
def tracked(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, TokenPaths]:
    """The tiny run in a workspace of its own, tracked once: twenty steps are too few for rows to be known as unused, so
    that those are named which Adam never updated."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copytree(tiny_source, folder / "tiny")
    workspace = Workspace(folder / "workspace")
    add(folder / "tiny", workspace=workspace)
    never = token_paths("tiny", workspace=workspace).choice.never_updated
    assert never is not None
    return workspace, token_paths("tiny", indicator=OUTPUT_COSINE, unused=never.tolist(), workspace=workspace)


def counted_by_hand(workspace: Workspace, run: str, last: int) -> dict[str, np.ndarray]:
    """Counts by token id over the steps of a run up to one, token by token."""
    record = workspace.run(run)
    counts = {name: np.zeros(ROWS, dtype=np.int64) for name in ("as_input", "as_target", "first_step", "last_step")}
    for batch in read_batches(plan_of(workspace, record, record.first_step - 1, last), reader_of(workspace, record)):
        for row, counts_as_target in zip(batch.token_ids.tolist(), batch.counts_as_target.tolist(), strict=True):
            for place, token in enumerate(row):
                counts["as_input"][token] += 1
                counts["as_target"][token] += place > 0 and counts_as_target[place]
                counts["first_step"][token] = counts["first_step"][token] or batch.step
                counts["last_step"][token] = batch.step
    return counts


# --- exposures, documents --------------------------------------------------------------------------------------------


def test_exposures_equal_a_brute_force_count_at_every_checkpoint(tracked: tuple[Workspace, TokenPaths]) -> None:
    workspace, found = tracked
    assert found.exposures is not None and found.steps == [0, 5, 10, 15, 20]

    for number, step in enumerate(found.steps[1:], 1):
        for name, expected in counted_by_hand(workspace, "tiny", step).items():
            assert np.array_equal(getattr(found.exposures, name)[number], expected), (step, name)
    assert not found.exposures.as_input[0].any()
    some = path_exposures(workspace, workspace.run("tiny"), [5, 15], ROWS)
    for name in PathExposures.__slots__:
        assert np.array_equal(getattr(some, name), getattr(found.exposures, name)[[1, 3]])


def test_documents_and_tags_equal_a_brute_force_count(tracked: tuple[Workspace, TokenPaths], tmp_path: Path) -> None:
    """The first documents in the order of reading, row after row; every reading counts for each tag."""
    workspace, found = tracked
    run, tags = workspace.run("tiny"), defaultdict(list)
    for document, tag in opened_for(workspace, run, "tags").execute("SELECT document_id, tag FROM tags").fetchall():
        tags[document].append(tag)
    documents: dict[int, list[int]] = defaultdict(list)
    readings: dict[int, Counter[str]] = defaultdict(Counter)
    for batch in read_batches(plan_of(workspace, run, 0, 20), reader_of(workspace, run)):
        spans = defaultdict(list)
        for instance, document, start, stop in spans_of_instances(workspace, run, np.unique(batch.instances)):
            spans[instance].append((start, stop, document))
        for row, instance in zip(batch.token_ids, batch.instances.tolist(), strict=True):
            for start, stop, document in sorted(spans[instance]):
                for token in row[start:stop].tolist():
                    if document not in documents[token]:
                        documents[token].append(document)
                    readings[token].update(tags[document])

    assert found.origins is not None
    for token in range(ROWS):
        assert list(found.origins.documents[token]) == documents[token]
        assert dict(found.origins.tags[token]) == dict(readings[token])
    kept = sql("select token_id, document_ids from token_origins order by 1", workspace=workspace).to_pylist()
    assert {row["token_id"]: row["document_ids"] for row in kept} == {t: d for t, d in documents.items() if d}
    with pytest.MonkeyPatch.context() as patch:  # no token of this run stands in more than 20
        patch.setattr(gathered_origins, "MOST_DOCUMENTS", 4)
        gathered = token_origins._gathered(
            workspace, count_of(workspace, run), ROWS, tmp_path, lambda done, total: None, 60.0
        )
    few = gathered.to_pylist()
    assert {row["token_id"]: row["document_ids"] for row in few} == {t: d[:4] for t, d in documents.items() if d}


def test_an_interrupted_gathering_goes_on(
    tracked: tuple[Workspace, TokenPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = tracked
    count, told = count_of(workspace, workspace.run("tiny")), list[int]()
    whole = token_origins._gathered(workspace, count, ROWS, tmp_path, lambda done, total: None, 60.0)
    monkeypatch.setattr(token_origins, "PLANNED_ROWS", 16)  # two steps

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_origins._gathered(workspace, count, ROWS, tmp_path, interrupt, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["gathered-6.npy"]
    rest = token_origins._gathered(workspace, count, ROWS, tmp_path, lambda done, total: told.append(done), 60.0)

    assert rest.equals(whole) and len(told) == 7 + 14  # steps 1 to 7, and 7 to 20
    (tmp_path / "gathered-6.npy").write_bytes(b"damaged")
    assert token_origins._gathered(workspace, count, ROWS, tmp_path, lambda done, total: None, 60.0).equals(whole)


def test_tags_without_room_are_counted_together(tracked: tuple[Workspace, TokenPaths]) -> None:
    """Of three sets of tags where there is room for one, that of most documents is counted by name; a document without
    tags is counted in none."""
    from data_index.batch import StepPlan
    from data_index.origin_queries import Spans, TagSets
    from data_index.step_rows import Rows

    sets = TagSets(sets=(("a", "b"), ("c",), ("d",)), documents=np.array([3, 7, 9]), numbers=np.array([0, 1, 2]))
    found = OriginsOfTokens(num_ids=10, tags=sets, most_count_bytes=10 * 8 * 3)
    starts, documents = np.arange(0, 8, 2), np.array([3, 7, 8, 9])
    found.begin(Spans(instance=np.zeros(4, dtype=np.int64), document=documents, start=starts, stop=starts + 2))
    rows = Rows(places=np.array([0]), token_ids=np.array([[5, 6, 5, 5, 7, 7, 8, 8, 5]]))
    found.add_step(StepPlan(step=1, epoch=1, instances=np.array([0])), [rows])
    by_token = {row["token_id"]: row for row in found.table().to_pylist()}

    assert {token: row["document_ids"] for token, row in by_token.items()} == {5: [3, 7], 6: [3], 7: [8], 8: [9]}
    tags = {t: dict(zip(row["tags"], row["tag_counts"], strict=True)) for t, row in by_token.items()}
    assert tags == {5: {OTHER: 2, "a": 1, "b": 1}, 6: {"a": 1, "b": 1}, 7: {}, 8: {OTHER: 2}}


def test_a_fork_has_what_its_parent_had_read_before(tmp_path: Path, tiny: Workspace) -> None:
    """From the checkpoint that it begins at, which is the parent's."""
    made = fork("tiny", from_step=5, num_steps=10, edits=["drop instance:50 @11"], workspace=tiny, device="cpu")
    found = token_paths(made.id, workspace=tiny)
    before, own = counted_by_hand(tiny, "tiny", 5), counted_by_hand(tiny, made.id, 15)

    assert found.steps == [5, 15] and found.exposures is not None
    assert np.array_equal(found.exposures.as_input[0], before["as_input"])
    assert np.array_equal(found.exposures.as_target[1], before["as_target"] + own["as_target"])
    first = np.where(before["first_step"], before["first_step"], own["first_step"])
    assert np.array_equal(found.exposures.first_step[1], first)
    assert any("of tiny" in message for message in found.messages)
    kept = kept_token_paths(made.id, workspace=tiny)
    assert kept is not None and kept.counts is None and "forensics exposures tiny counts it" in kept.messages[-1]
    exposures("tiny", workspace=tiny)
    kept = kept_token_paths(made.id, workspace=tiny)
    assert kept is not None and np.array_equal(kept.exposures_at(), found.exposures_at())  # type: ignore[arg-type]
    assert "from checkpoint 5 on" in token_page(made.id, 3, workspace=tiny).note


# --- paths -----------------------------------------------------------------------------------------------------------


def test_tokens_without_exposure_are_in_the_cluster_at_every_checkpoint(
    tracked: tuple[Workspace, TokenPaths],
) -> None:
    """And what is printed of the last is what is so."""
    workspace, found = tracked
    counts = counted_by_hand(workspace, "tiny", 20)
    unread = set(np.flatnonzero(counts["as_target"] == 0).tolist())
    inside = {row["token_id"] for row in found.rows if row["untrained"]}
    agreed, told = found.agreement, dict(path_facts(found))

    assert found.counted == "as_target" and unread == {row["token_id"] for row in found.found(NEVER_READ)} != set()
    for point in found.points:
        assert point.inside is not None and unread <= set(np.flatnonzero(point.inside).tolist())
    assert found.points[0].inside is not None and found.points[0].inside.mean() > 0.99
    assert agreed is not None and (agreed.inside, agreed.unread) == (len(inside), len(unread))
    assert agreed.recall == 1 and agreed.precision == len(unread) / len(inside) > 0.4
    assert f"precision {agreed.precision:.2f}, recall 1.00" in told["in the cluster against no exposure"]
    often_read = counts["as_target"] > 100
    assert often_read.sum() > 20 and not inside & set(np.flatnonzero(often_read).tolist())


def test_every_checkpoint_has_a_row_for_every_token(tracked: tuple[Workspace, TokenPaths]) -> None:
    """In the answer and in the view of the workspace, and they agree."""
    workspace, found = tracked
    table = found.table()
    again = token_paths("tiny", indicator=OUTPUT_COSINE, unused=found.choice.unused.tolist(), workspace=workspace)
    kept = sql("select * exclude (run) from token_paths order by step, token_id", workspace=workspace)

    assert again.num_bytes == 0 and again.table().equals(table)
    assert table.num_rows == kept.num_rows == 5 * ROWS
    for name in ("step", "token_id", "untrained"):
        assert table.column(name).to_pylist() == kept.column(name).to_pylist()
    assert np.allclose(table.column("indicator").to_numpy(), kept.column("indicator").to_numpy(), atol=0)
    last = table.slice(4 * ROWS).to_pylist()
    by_id = {row["token_id"]: row for row in found.rows}
    same = ("text", "indicator", "untrained", "distance_to_unused", "as_input", "as_target", "first_step", "last_step")
    assert all({k: row[k] for k in same} == {k: by_id[row["token_id"]][k] for k in same} for row in last)


def test_bounds_are_the_exposures_at_the_two_checkpoints_around(tracked: tuple[Workspace, TokenPaths]) -> None:
    _, found = tracked
    counts, number = found.exposures_at(), {step: n for n, step in enumerate(found.steps)}
    left = [row for row in found.rows if row["left_step"]]

    assert counts is not None and len({row["left_step"] for row in left}) > 1
    for row in left:
        at, token = number[row["left_step"]], row["token_id"]
        insides = [point.inside[token] for point in found.points if point.inside is not None]
        assert insides[at - 1] and not any(insides[at:])
        assert (row["left_after_min"], row["left_after_max"]) == (counts[at - 1, token], counts[at, token])


def test_the_indicator_is_that_of_tokens_at_each_checkpoint(tracked: tuple[Workspace, TokenPaths]) -> None:
    """With the rows of the last checkpoint held fixed; unless one is named, that of the last checkpoint."""
    workspace, found = tracked
    unused = found.choice.unused.tolist()
    at_10 = tokens("tiny", 10, unused=unused, workspace=workspace).values[OUTPUT_COSINE]
    last, default = tokens("tiny", workspace=workspace), token_paths("tiny", workspace=workspace)

    assert np.allclose(found.points[2].values, at_10, atol=1e-5)
    assert (last.indicator, last.reason) == (default.choice.indicator, default.choice.reason)
    assert np.array_equal(default.points[-1].values, last.values[last.indicator])


def test_what_says_little_is_said(tracked: tuple[Workspace, TokenPaths]) -> None:
    """After twenty steps norms are as they were: no row is known, and those never updated scatter as others do."""
    default = token_paths("tiny", workspace=tracked[0])

    assert default.choice.indicator == INPUT_NORM and not len(default.choice.unused)
    assert set(default.choice.known.tolist()) == {row["token_id"] for row in default.rows if row["never_updated"]}
    assert default.agreement is not None and default.agreement.inside > 300 and default.agreement.recall == 1
    counts = default.exposures_at()
    assert counts is not None
    read = int((counts[-1] >= 10).sum())
    doubt = f"of {read} tokens that were read 10 times or more cannot be told from unused ones"
    assert any(doubt in message for message in default.messages)
    assert not any("cannot be told" in message for message in tracked[1].messages)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_an_interrupted_tracking_reads_no_checkpoint_twice(tiny: Workspace) -> None:
    """The last one is read first, with both matrices and their moments; of the others one matrix each."""

    def stopped(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_paths("tiny", workspace=tiny, progress=stopped)
    found = token_paths("tiny", workspace=tiny)
    again = token_paths("tiny", workspace=tiny)

    assert found.num_bytes == 2 * MATRIX_BYTES and again.num_bytes == 0
    assert found.table().equals(again.table()) and found.rows == again.rows
    part = token_paths("tiny", checkpoints=[0, 20], workspace=tiny)
    assert part.num_bytes == 0 and part.steps == [0, 20]
    assert sql("select distinct step from token_paths order by 1", workspace=tiny).column(0).to_pylist() == [0, 20]
    alone = token_paths("tiny", checkpoints=[20], workspace=tiny).rows
    assert {row["left_step"] for row in alone} <= {None, 20} and {row["left_after_min"] for row in alone} == {None}


def test_a_checkpoint_that_changed_is_read_again(tiny: Workspace, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = token_paths("tiny", workspace=tiny)
    path = tmp_path / "tiny" / "checkpoints" / "step10" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][7] *= 2
    save_file(tensors, path)
    found = token_paths("tiny", workspace=tiny)
    changed = np.flatnonzero(found.points[2].values != before.points[2].values)

    assert found.num_bytes == MATRIX_BYTES and changed.tolist() == [7]


def test_what_the_user_names_is_held_fixed_instead(tiny: Workspace) -> None:
    found = token_paths("tiny", indicator=INPUT_NORM, unused=[125, 126, *range(178, 189)], workspace=tiny)

    assert (found.choice.indicator, found.counted) == (INPUT_NORM, "as_input")
    assert len(found.choice.unused) == 13 and "named" in found.choice.unused_reason
    others = token_paths("tiny", indicator=INPUT_NORM, unused=[125, 126], workspace=tiny)
    assert others.choice.unused.tolist() == [125, 126] and others.num_bytes >= 5 * MATRIX_BYTES
    assert [point.cluster for point in others.points] != [point.cluster for point in found.points]
    with pytest.raises(InvalidRange, match="luck"):
        token_paths("tiny", indicator="luck", workspace=tiny)
    with pytest.raises(MissingCheckpoint, match="nearest are 5 and 10"):
        token_paths("tiny", checkpoints=[7], workspace=tiny)


def test_without_the_data_there_are_paths_without_counts(tiny: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tiny" / "tokens")
    found = token_paths("tiny", workspace=tiny)
    rows = found.table().to_pylist()

    assert found.exposures is None and found.agreement is None and found.origins is None
    assert any("how often tokens were read is not known" in message for message in found.messages)
    assert len(rows) == 5 * ROWS and {row["as_input"] for row in rows} == {None}
    assert {row["untrained"] for row in rows} == {True, False} and not found.found(NEVER_READ, READ_UNTRAINED)
    write_path_report(found, tmp_path / "r.html")
    assert "not known" in (tmp_path / "r.html").read_text()


# --- planted paths ---------------------------------------------------------------------------------------------------


def choice_of(*, indicator: str = OUTPUT_COSINE, tied: bool = False, num_rows: int = 0) -> Choice:
    return Choice(
        indicator=indicator,
        reason="planted",
        unused=np.array([192, 193]),
        unused_reason="planted",
        never_updated=None,
        tied=tied,
        num_rows=num_rows,
    )


@pytest.mark.parametrize(
    ("indicator", "tied", "counted"),
    [(OUTPUT_COSINE, False, "as_target"), (INPUT_NORM, False, "as_input"), (OUTPUT_COSINE, True, "either")],
)
def test_exposures_are_those_that_move_the_matrix(indicator: str, tied: bool, counted: str) -> None:
    """A token that only ends rows is a target and never an input: only the output row was moved."""
    assert counted_for(choice_of(indicator=indicator, tied=tied)) == counted


def planted(analysis: TokenizerAnalysis) -> TokenPaths:
    """Three checkpoints, the limit at 0.2: `a` leaves at the second, `b` falls back, `c` never leaves however often it
    is read, ` t` and `zz` were read three times and twice, ` te` never; others leave at the second with 40 readings."""
    count = len(analysis.tokens)
    of_piece = {token.piece: token.token_id for token in analysis.tokens}
    a, b, c, t, te, zz = (of_piece[piece] for piece in ("a", "b", "c", "Ġt", "Ġte", "zz"))
    values, read = np.full((3, count), 1.0, np.float32), np.full((3, count), 100)
    values[0], read[0], read[1] = 0.1, 0, 40
    values[:, b], values[:, [c, t, te, zz]] = [0.1, 1.0, 0.15], 0.1
    read[:, a], read[:, b], read[:, te] = [0, 30, 90], [0, 15, 30], 0
    read[:, t], read[:, zz], read[1, of_piece["d"]] = [0, 0, 3], [0, 0, 2], 60
    cluster = UntrainedCluster(centre=0.1, ordinary=1.0, limit=0.2)
    points = [PathPoint(step=step, values=v, cluster=cluster) for step, v in zip((0, 10, 20), values, strict=True)]
    exposures = PathExposures(
        as_input=read - 1 * (read > 0), as_target=read, first_step=(read > 0) * 4, last_step=(read > 0) * 20
    )
    return answered(
        run="planted",
        choice=choice_of(num_rows=count),
        analysis=analysis,
        points=points,
        exposures=exposures,
        origins=None,
        num_bytes=0,
        messages=(),
    )


def test_planted_paths_have_their_findings() -> None:
    found = planted(analyse_tokenizer(byte_level()))
    of_text = {row["text"]: row for row in found.rows}

    assert {text: of_text[text]["finding"] for text in ("a", "b", "c", " t", " te", "d")} == {
        **{"a": None, "d": None, "b": FELL_BACK, "c": READ_UNTRAINED},
        **{" t": HARDLY_READ, " te": NEVER_READ},
    }
    assert found.often == 40 and [row["text"] for row in found.rows[:5]] == [" te", "zz", " t", "c", "b"]
    assert tuple(of_text["a"]) == SUMMARY
    said = ("left_step", "left_after_min", "left_after_max", "fell_back_step")
    assert [of_text["a"][name] for name in said] == [10, 0, 30, None]
    assert [of_text["b"][name] for name in said] == [None, None, None, 20]
    assert (of_text["d"]["exposures"], of_text["d"]["as_input"], of_text["d"]["first_step"]) == (100, 99, 4)
    assert of_text[" te"]["first_step"] is None and of_text["c"]["distance_to_unused"] == 0
    agreed = found.agreement
    assert agreed is not None and (agreed.inside, agreed.unread, agreed.both) == (5, 1, 1)
    assert agreed.others_read == (16.5, 100) and (agreed.precision, agreed.recall) == (0.2, 1)


def test_where_nothing_tells_the_checkpoint_is_passed_over() -> None:
    """Its rows are null, and the bounds are those of the checkpoints before and after it."""
    analysis = analyse_tokenizer(byte_level())
    known = planted(analysis)
    points = list(known.points)
    points.insert(1, replace(points[0], step=5, cluster=UntrainedCluster(centre=None, ordinary=0.1, limit=None)))
    assert known.exposures is not None
    counts = {name: np.insert(getattr(known.exposures, name), 1, 7, axis=0) for name in PathExposures.__slots__}
    found = answered(
        run="planted",
        choice=known.choice,
        analysis=analysis,
        points=points,
        exposures=PathExposures(**counts),
        origins=None,
        num_bytes=0,
        messages=(),
    )
    row = next(row for row in found.rows if row["text"] == "a")

    assert (row["left_step"], row["left_after_min"], row["left_after_max"]) == (10, 0, 30)
    assert any("checkpoint 5" in message for message in found.messages)
    assert {row["untrained"] for row in found.table().to_pylist() if row["step"] == 5} == {None}


def test_reports_show_every_table_and_text_as_text(tmp_path: Path) -> None:
    found = planted(analyse_tokenizer(byte_level()))
    rows = tuple({**row, "text": "<b>|\x1b[2J"} if row["text"] == "c" else row for row in found.rows)
    found = replace(found, rows=rows)
    written = write_path_report(found, tmp_path / "r.md") + write_path_report(found, tmp_path / "r.html")
    markdown, page = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()

    assert [path.name for path in written] == ["r.md", "r.png", "r.html"]
    for heading in ("never or hardly in the data", "Seen often, still untrained", "Fell back"):
        assert heading in markdown and heading in page
    assert r"\<b\>\|\\x1b\[2J" in markdown and "\x1b" not in markdown + page
    assert "&lt;b&gt;|\\x1b[2J" in page
    # The text of a mark on a logarithmic axis, at 0.5 of it.
    assert re.search(r'"text":"none","x":-0\.3010', page)


@pytest.mark.parametrize(("most_points", "most_paths"), [(20_000, 75), (1, 1)])
def test_every_interesting_token_is_drawn(most_points: int, most_paths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ordinary ones as many as can be told apart; the titles say how many of how many."""
    from forensics import token_path_picture as picture

    monkeypatch.setattr(picture, "MOST_POINTS", most_points)
    monkeypatch.setattr(picture, "MOST_PATHS", most_paths)
    found = planted(analyse_tokenizer(byte_level()))
    end, paths = picture.figure_of(found).panels[:2]
    drawn = {series.name.split(" (")[0]: len(series.x) for series in end.series}  # type: ignore[union-attr]
    ordinary = len(found.rows) - 5

    assert drawn | {"limit of the cluster": 0} == {
        **{NEVER_READ: 1, HARDLY_READ: 2, READ_UNTRAINED: 1, FELL_BACK: 1, "limit of the cluster": 0},
        "others": min(ordinary, most_points),
    }
    assert f"{3 + min(2, most_paths) + min(ordinary, most_paths)} of {len(found.rows)} tokens" in paths.title
    assert ("all" in end.title) == (most_points > ordinary)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_kept_says_the_same_as_the_answer(tracked: tuple[Workspace, TokenPaths]) -> None:
    """It is read without a lock, and without the weights."""
    workspace, before = tracked
    found = token_paths(
        "tiny", indicator=OUTPUT_COSINE, unused=before.choice.unused.tolist(), workspace=workspace
    )  # the last one to be asked is kept
    kept = kept_token_paths("tiny", workspace=workspace)
    assert kept is not None and kept.steps == found.steps and kept.often == found.often
    assert kept.counted == found.counted and kept.indicator == found.indicator
    assert np.array_equal(kept.exposures_at(), found.exposures_at())  # type: ignore[arg-type]

    for mine, theirs in zip(kept.points, found.points, strict=True):
        assert np.array_equal(mine.values, theirs.values) and mine.limit == theirs.cluster.limit
        assert np.array_equal(mine.inside, theirs.inside)  # type: ignore[arg-type]
    answers = {row["token_id"]: row for row in found.rows}
    for row in kept.rows:
        expected = answers[row["token_id"]]
        assert all(row[name] == expected[name] for name in KEPT if name != "text"), row
