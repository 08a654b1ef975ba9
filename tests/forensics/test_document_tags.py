"""Tags of documents from every origin: given, replaced, taken away, and seen by SQL, `--by`, `at` and edits."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from data_index.errors import CorruptFile, FailedFunction, InvalidRange, UnknownDocument, UnknownOrigin
from data_index.registration import add
from data_index.store import connect, run_query
from data_index.workspace import Workspace
from forensics import document_tags
from forensics.document_tags import plan_tag, tag
from forensics.forking import fork
from forensics.lookup import at, batch
from tests.forensics.test_cli import answer, forensics

Tags = set[tuple[int, str]]


def tags_of(workspace: Workspace, run: str = "tiny") -> Tags:
    rows = connect(workspace, [run]).execute("SELECT document_id, tag FROM tags").fetchall()
    assert len(rows) == len(set(rows)), "a tag counts once a document"
    return set(rows)


def own(raw: Any) -> Tags:
    return {(document["document_id"], name) for document in raw.documents for name in document["tags"]}


@pytest.fixture(scope="session")
def raw(tiny_source: Path) -> Any:
    from tests.data_index.conftest import RawRun

    return RawRun(tiny_source)


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a user's module and makes it the current folder's."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> None:
        (folder / "my_tags.py").write_text(text)
        sys.modules.pop("my_tags", None)

    yield write
    sys.modules.pop("my_tags", None)


# --- from a table ----------------------------------------------------------------------------------------------------


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    table = pyarrow.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_tags_of_a_table_join_those_of_the_trainer(name: str, tiny: Workspace, tmp_path: Path, raw: Any) -> None:
    there = next(iter(own(raw)))
    given = {"document_id": [3, 1, 3, there[0], 1], "tag": ["good", "bad", "other", there[1], "bad"]}
    path = write_table(tmp_path / name, given | {"note": ["more"] * 5})

    counts = tag("tiny", table=path, workspace=tiny).to_pylist()
    assert tags_of(tiny) == own(raw) | {(3, "good"), (1, "bad"), (3, "other")}
    assert counts == [
        {"origin": name, "tag": value, "documents": 1} for value in sorted(["bad", "good", "other", there[1]])
    ]


def test_a_list_gives_several_tags_and_nothing_gives_none(tiny: Workspace, tmp_path: Path, raw: Any) -> None:
    given = {"document_id": [0, 1, 2, 4], "tag": [["a", "b"], [], None, ["", "c", None]]}

    tag("tiny", table=write_table(tmp_path / "mine.parquet", given), workspace=tiny)
    assert tags_of(tiny) - own(raw) == {(0, "a"), (0, "b"), (4, "c")}


def test_the_same_origin_replaces_its_tags_and_no_others(tiny: Workspace, tmp_path: Path, raw: Any) -> None:
    one = write_table(tmp_path / "one.csv", {"document_id": [1, 2], "tag": ["x", "x"]})
    two = write_table(tmp_path / "two.csv", {"document_id": [1], "tag": ["y"]})
    tag("tiny", table=one, workspace=tiny)
    tag("tiny", table=two, origin="judge's", workspace=tiny)
    assert tags_of(tiny) - own(raw) == {(1, "x"), (2, "x"), (1, "y")}
    write_table(one, {"document_id": [5], "tag": ["z"]})
    tag("tiny", table=one, workspace=tiny)
    assert tags_of(tiny) - own(raw) == {(5, "z"), (1, "y")}

    assert [row["origin"] for row in tag("tiny", workspace=tiny).to_pylist()] == ["judge's", "one.csv"]
    tag("tiny", remove="judge's", workspace=tiny)
    assert tags_of(tiny) - own(raw) == {(5, "z")}
    with pytest.raises(UnknownOrigin, match='tiny has no tags from "judge\'s"; there are those from: one.csv'):
        tag("tiny", remove="judge's", workspace=tiny)
    tag("tiny", remove="one.csv", workspace=tiny)
    assert tags_of(tiny) == own(raw)
    with pytest.raises(UnknownOrigin, match="there are those from: none"):
        tag("tiny", remove="one.csv", workspace=tiny)


BAD_TABLES: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no tag": ("x.csv", {"document_id": [1], "label": ["a"]}, CorruptFile, "the columns document_id, label; tags need"),
    "no id": ("x.parquet", {"tag": ["a"]}, CorruptFile, "tags need `tag`, and `document_id` or `external_id`"),
    "both ids": (
        "x.csv",
        {"document_id": [1], "external_id": ["a"], "tag": ["a"]},
        CorruptFile,
        "tags need `tag`, and `document_id` or",
    ),
    "no number": ("x.csv", {"document_id": ["one"], "tag": ["a"]}, CorruptFile, "is not a whole table of tags"),
    "tag of another type": ("x.parquet", {"document_id": [1], "tag": [{"a": 1}]}, CorruptFile, "not a whole table"),
    "an endless tag": ("x.csv", {"document_id": [1], "tag": ["a" * 257]}, CorruptFile, "more than 256 characters"),
    "a document that is not there": (
        "x.csv",
        {"document_id": [1, 99], "tag": ["a", "b"]},
        UnknownDocument,
        "tiny has no document whose document_id is '99'",
    ),
    "no document of that name": (
        "x.csv",
        {"external_id": ["a", "b"], "tag": ["a", "b"]},
        UnknownDocument,
        "tiny has no document whose external_id is '[ab]', nor those of 1 other rows",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_does_not_fit_changes_nothing(case: str, tiny: Workspace, tmp_path: Path, raw: Any) -> None:
    name, columns, error, message = BAD_TABLES[case]

    with pytest.raises(error, match=message):
        tag("tiny", table=write_table(tmp_path / name, columns), workspace=tiny)
    assert tags_of(tiny) == own(raw)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.txt"])
def test_a_damaged_table_is_corrupt(name: str, tiny: Workspace, tmp_path: Path) -> None:
    path = write_table(tmp_path / "whole.parquet", {"document_id": [1] * 100, "tag": ["a"] * 100})
    (tmp_path / name).write_bytes(path.read_bytes()[:-40])

    with pytest.raises(CorruptFile, match="x\\.(parquet|csv|txt)"):
        tag("tiny", table=tmp_path / name, workspace=tiny)


# --- from provenance -------------------------------------------------------------------------------------------------


def learn_documents_of(workspace: Workspace, described: list[tuple[str | None, str | None]]) -> None:
    """Documents of the tiny run with these sources and external ids instead of its own."""
    from data_index.kinds import table_of_rows
    from data_index.workspace import learn

    rows = [
        {"document_id": n, "file": "text-0.bin", "start": n, "end": n + 1, "tags": [], "source": s, "external_id": e}
        for n, (s, e) in enumerate(described)
    ]
    learn(workspace.home("tiny"), "documents", table_of_rows("documents", rows, "test"))


DOLMA = "s3://ai2-llm/pretraining-data/sources/"
PROVENANCE: dict[str, tuple[list[tuple[str | None, str | None]], Tags]] = {
    "Dolma's layout names the source; folders of some are kept, of all or of one are not": (
        [
            (f"{DOLMA}dclm/v0/documents/web/part-0.jsonl.gz", "a"),
            (f"{DOLMA}dclm/v0/documents/web/part-1.jsonl.gz", "b"),
            (f"{DOLMA}pes2o/v1/documents/part-1.jsonl.gz", "c"),
            (f"{DOLMA}wiki/v1/documents/one/part-1.jsonl.gz", "d"),
        ],
        {
            *((n, tag) for n in (0, 1) for tag in ("source:dclm", "path:v0", "path:web")),
            *((2, tag) for tag in ("source:pes2o", "path:v1")),
            *((3, tag) for tag in ("source:wiki", "path:v1")),
        },
    ),
    "elsewhere the first folder that tells documents apart does": (
        [
            ("data/web/x/0.gz", None),
            ("data/web/y/0.gz", None),
            ("data/books/x/0.gz", None),
            ("data/books/z/1.gz", None),
        ],
        {
            *((n, "source:web") for n in (0, 1)),
            *((n, "source:books") for n in (2, 3)),
            *((n, "path:x") for n in (0, 2)),
        },
    ),
    "of one source the last folder": (
        [("data/web/0.gz", None), ("data/web/1.gz", None)],
        {(0, "source:web"), (1, "source:web")},
    ),
    "a name without folders is one": (
        [("wikipedia", None), ("wikipedia", None), ("books", None), ("books", None), (None, None)],
        {(0, "source:wikipedia"), (1, "source:wikipedia"), (2, "source:books"), (3, "source:books")},
    ),
    "a file of its own tells nothing": ([("a.py", None), ("b.py", None), ("x/c.py", None)], set()),
    "hosts of addresses, in ids and in sources": (
        [
            ("x.gz", "https://WWW.a.org:80/x/y?z=http://b.org"),
            ("x.gz", "http://user:word@b.org/q"),
            ("https://b.org/p/r", "n"),
            ("x.gz", "https://www.a.org"),
            ("x.gz", "https://only.org/"),
        ],
        {(0, "host:www.a.org"), (3, "host:www.a.org"), (1, "host:b.org"), (2, "host:b.org")}
        | {(n, "source:x.gz") for n in (0, 1, 3, 4)},
    ),
}


@pytest.mark.parametrize("case", PROVENANCE)
def test_provenance_tags_what_tells_documents_apart(case: str, tiny: Workspace) -> None:
    described, expected = PROVENANCE[case]
    learn_documents_of(tiny, described)

    tag("tiny", provenance=True, workspace=tiny)
    assert tags_of(tiny) == expected


def test_tags_by_the_publisher_s_ids_may_speak_of_more_than_the_run(tiny: Workspace, tmp_path: Path) -> None:
    """A larger corpus is tagged once; two copies of a document have one id."""
    learn_documents_of(tiny, [(None, "a"), (None, "b"), (None, "a"), (None, None)])
    given = {"external_id": ["a", "elsewhere", "b"], "tag": ["x", "x", "y"]}

    tag("tiny", table=write_table(tmp_path / "mine.csv", given), workspace=tiny)
    assert tags_of(tiny) == {(0, "x"), (2, "x"), (1, "y")}


# --- from a function -------------------------------------------------------------------------------------------------


def texts(workspace: Workspace, raw: Any) -> dict[int, str]:
    """Text of every document from the raw files."""
    from data_index.text import decode

    run = workspace.run("tiny")
    files = {file.name: np.fromfile(file.on_disk, dtype="<u2") for file in (*run.files, *run.heldout)}
    found = {}
    for document in raw.documents:
        ids = files[document["file"]][document["start"] : document["end"]].astype(np.int64)
        found[document["document_id"]] = decode(run, ids[:-1] if ids[-1] == run.eos_token_id else ids)
    return found


def test_a_function_is_asked_about_the_text_of_every_document(tiny: Workspace, my_module: Any, raw: Any) -> None:
    my_module(
        "def size(text):\n    return None if len(text) % 2 else ('long' if len(text) > 600 else ['short', 'even'])"
    )
    wanted: Tags = set()
    for document, text in texts(tiny, raw).items():
        if len(text) % 2 == 0:
            wanted |= {(document, name) for name in (["long"] if len(text) > 600 else ["short", "even"])}

    tag("tiny", function="my_tags:size", workspace=tiny)
    assert tags_of(tiny) - own(raw) == wanted and len(wanted) > 2


def test_a_function_of_two_arguments_sees_the_row_too(tiny: Workspace, my_module: Any, raw: Any) -> None:
    my_module("def by(text, row):\n    return f\"{row['file']}:{row['document_id']}\"")
    tag("tiny", function="my_tags:by", origin="mine", workspace=tiny)

    assert tags_of(tiny) - own(raw) == {(d["document_id"], f"{d['file']}:{d['document_id']}") for d in raw.documents}
    assert {row["origin"] for row in tag("tiny", workspace=tiny).to_pylist()} == {"mine"}


def test_a_stopped_function_goes_on_where_it_was(
    tiny: Workspace, my_module: Any, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept is not asked about again, and an edited function begins anew."""
    monkeypatch.setattr(document_tags, "CHUNK_DOCUMENTS", 4)
    module = """
import os

def ask(text, row):
    {}
    with open('asked', 'a') as file:
        print(row['document_id'], file=file)
    return str(row['document_id'])
"""
    my_module(
        module.format("if row['document_id'] == 10 and not os.path.exists('go'):\n        raise KeyError('stop')")
    )
    with pytest.raises(FailedFunction, match=r"my_tags:ask failed on document 10: KeyError\('stop'\)"):
        tag("tiny", function="my_tags:ask", workspace=tiny)
    assert tags_of(tiny) == own(raw)
    Path("go").touch()
    tag("tiny", function="my_tags:ask", workspace=tiny)
    total = len(raw.documents)

    asked = list(map(int, Path("asked").read_text().split()))
    assert asked == [*range(10), *range(8, total)]
    assert tags_of(tiny) - own(raw) == {(n, str(n)) for n in range(total)}
    Path("go").unlink()
    with pytest.raises(FailedFunction):
        tag("tiny", function="my_tags:ask", workspace=tiny)
    my_module(module.format("pass"))
    tag("tiny", function="my_tags:ask", workspace=tiny)
    assert list(map(int, Path("asked").read_text().split()))[-total:] == list(range(total))
    assert tags_of(tiny) - own(raw) == {(n, str(n)) for n in range(total)}


def test_a_trial_keeps_nothing(tiny: Workspace, my_module: Any, raw: Any) -> None:
    my_module("def twice(text):\n    return ['a', 'b', 'a'] if text else None")

    tried = tag("tiny", function="my_tags:twice", limit=2, workspace=tiny).to_pylist()
    assert tried == [{"document_id": 0, "tag": "a, b"}, {"document_id": 1, "tag": "a, b"}]
    assert tags_of(tiny) == own(raw)
    assert plan_tag("tiny", function="my_tags:twice", workspace=tiny) == {
        "run": "tiny",
        "documents": len(raw.documents),
        "tokens": sum(d["end"] - d["start"] for d in raw.documents),
        "read_bytes": 110 * 64 * 2,
        "fetch_bytes": 0,
    }


@pytest.mark.parametrize(
    ("module", "function", "message"),
    [
        ("", "my_tags", "names no function; write module:function"),
        ("", "nowhere_to_be_found:f", "nowhere_to_be_found, named by --fn .*, cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "my_tags:f", "cannot be imported: ZeroDivisionError"),
        ("f = 3", "my_tags:f", "my_tags has no function 'f'"),
        ("def f(text):\n    return 7", "my_tags:f", "my_tags:f failed on document 0: TypeError"),
        ("def f(text):\n    return [7]", "my_tags:f", "my_tags:f gave 7 for document 0; a tag is text of 1 to 256"),
        ("def f(text):\n    return ''", "my_tags:f", "my_tags:f gave '' for document 0"),
        ("def f(text):\n    return 'x' * 257", "my_tags:f", "for document 0; a tag is text of 1 to 256 characters"),
        ("def f():\n    return 'x'", "my_tags:f", "my_tags:f failed on document 0: TypeError"),
    ],
)
def test_a_function_that_is_none_changes_nothing(
    module: str, function: str, message: str, tiny: Workspace, my_module: Any, raw: Any
) -> None:
    my_module(module)

    with pytest.raises(FailedFunction, match=message):
        tag("tiny", function=function, workspace=tiny)
    assert tags_of(tiny) == own(raw)


def test_one_way_at_a_time(tiny_shared: Workspace) -> None:
    with pytest.raises(InvalidRange, match="tag takes one of --provenance, --from, --fn and --remove"):
        tag("tiny", provenance=True, function="a:b", workspace=tiny_shared)
    with pytest.raises(InvalidRange, match="--limit goes with --fn"):
        tag("tiny", provenance=True, limit=3, workspace=tiny_shared)


# --- where tags are used ---------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(tiny: Workspace, tmp_path: Path, raw: Any) -> Workspace:
    """Every third document is `third`; the first of them `first` too."""
    thirds = [d["document_id"] for d in raw.documents if d["document_id"] % 3 == 0]
    given = {"document_id": [*thirds, 0], "tag": ["third"] * len(thirds) + ["it's first"]}
    tag("tiny", table=write_table(tmp_path / "mine.csv", given), workspace=tiny)
    return tiny


def test_learned_tags_are_counted_by_group_and_by_step(tagged: Workspace, raw: Any) -> None:
    counts: Counter[int] = Counter()
    for reading in raw.readings:
        counts[reading.step] += sum(
            n for document, n in raw.pieces(reading.instance) if not document["document_id"] % 3
        )
    rows = {row["tag"]: row for row in batch("tiny", "0:20", by="tag", workspace=tagged).to_pylist()}
    step = {row["tag"]: row["tokens"] for row in at("tiny", 8, workspace=tagged)["read_by_tag"]}

    assert rows["third"]["tokens"] == sum(counts.values())
    assert step.get("third", 0) == counts[8]
    query = "SELECT count(*) AS n FROM tags WHERE run = 'tiny' AND tag = 'third'"
    assert run_query(tagged, query).to_pylist() == [{"n": len(range(0, len(raw.documents), 3))}]


def hidden_tokens(raw: Any, step: int, matches: Any) -> int:
    readings = [reading for reading in raw.readings if reading.step == step]
    return sum(n for reading in readings for d, n in raw.pieces(reading.instance) if matches(d["document_id"]))


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("tag:third", lambda document: document % 3 == 0),
        ("where:\"list_contains(tags, 'third')\"", lambda document: document % 3 == 0),
        ('where:"len(tags) = 4"', lambda document: document == 0),
    ],
)
def test_edits_select_by_learned_tags(selector: str, matches: Any, tagged: Workspace, raw: Any) -> None:
    step = next(s for s in range(6, 21) if hidden_tokens(raw, s, matches))
    child = fork("tiny", from_step=5, num_steps=step - 4, edits=[f"mask {selector} @{step}"], workspace=tagged)

    masked = batch(child.id, step, workspace=tagged).column("masked").to_pylist()
    assert sum(masked) == hidden_tokens(raw, step, matches)


def test_a_fork_carries_its_parent_s_tags(tagged: Workspace) -> None:
    child = fork("tiny", from_step=5, num_steps=2, edits=["mask tag:third @5:7"], workspace=tagged)

    assert tags_of(tagged, child.id) == tags_of(tagged)
    tag(child.id, remove="mine.csv", workspace=tagged)
    assert "third" not in {name for _, name in tags_of(tagged, child.id)}
    assert "third" in {name for _, name in tags_of(tagged)}


def test_what_the_verbs_print(tagged: Workspace, tmp_path: Path) -> None:
    rows = answer(tagged, "tag", "tiny")
    files = answer(tagged, "documents", "tiny")
    plan = answer(tagged, "tag", "tiny", "--fn", "a:b", "--plan")

    assert rows[0] == {"origin": "mine.csv", "tag": "third", "documents": 7}
    assert [row["file"] for row in files] == ["text-0.bin", "text-1.bin", "heldout.bin"]
    assert plan["documents"] == 19
    write_table(tmp_path / "many.csv", {"document_id": [0] * 60, "tag": [f"t{n}" for n in range(60)]})
    done = forensics(tagged, "tag", "tiny", "--from", str(tmp_path / "many.csv"))
    assert "62 tags; the first 40 are shown" in done.stderr and len(done.stdout.splitlines()) == 42
    assert len(json.loads(forensics(tagged, "tag", "tiny", "--format", "json").stdout)) == 62


def test_tagging_needs_documents(tiny_copy: Path, workspace: Workspace, my_module: Any) -> None:
    (tiny_copy / "documents.parquet").unlink()
    text = (tiny_copy / "run.toml").read_text()
    (tiny_copy / "run.toml").write_text("\n".join(x for x in text.splitlines() if not x.startswith("eos_token_id")))
    add(tiny_copy, workspace=workspace)

    with pytest.raises(UnknownDocument, match="no documents of tiny are known yet: forensics documents tiny learns"):
        tag("tiny", provenance=True, workspace=workspace)
