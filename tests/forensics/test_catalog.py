"""The verb `catalog`: rows on stdout, every fact with its source, the mistakes of official lists."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from data_index.errors import CorruptFile, UnknownRun
from data_index.registry import families, find_run, released_runs
from forensics.cli.releases import COMMANDS, catalog

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "listings"
PROGRAM = """
import sys
from forensics.cli.releases import catalog
catalog(None)
heavy = {"numpy", "torch", "transformers", "duckdb", "pyarrow", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""


def run(*arguments: str) -> tuple[str, str]:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(catalog)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        app(list(arguments), standalone_mode=False)
    return out.getvalue(), err.getvalue()


def answer(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--format", "json")[0])


def test_the_verb_is_exported_with_an_example() -> None:
    assert COMMANDS == (catalog,)
    assert (catalog.__doc__ or "").rstrip().endswith("Example: forensics catalog pythia")


def test_it_starts_without_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "pythia-12b-deduped" in done.stdout


# --- runs and families -----------------------------------------------------------------------------------------------


def test_without_a_name_every_run_is_a_row() -> None:
    rows = answer()
    row = next(row for row in rows if row["run"] == "olmo-2-13b")

    assert len(rows) > 150 and len({row["family"] for row in rows}) == 13
    assert row["issues"] > 5
    assert {**row, "issues": None} == {
        "family": "olmo2",
        "run": "olmo-2-13b",
        "parameters": "13B",
        "steps": 596057,
        "tokens": 5000088518656,
        "states": ["weights", "optimizer", "trainer"],
        "order": "derived",
        "replay": "exact",
        "issues": None,
    }


def test_the_table_fits_a_terminal_and_says_what_to_ask_next() -> None:
    out, err = run()

    assert max(map(len, out.splitlines())) <= 80
    assert next(line for line in out.splitlines() if " pythia-70m " in line).split() == [
        *("pythia-70m", "70M", "143000", "weights", "derived", "approx."),
        str(next(row for row in answer() if row["run"] == "pythia-70m")["issues"]),
    ]
    assert [line for line in out.splitlines()[2:] if not line.startswith(" ")] == [family.name for family in families()]
    assert "forensics catalog RUN" in err and "forensics catalog" not in out


def test_rows_as_csv_have_the_same_columns() -> None:
    rows = list(csv.DictReader(io.StringIO(run("--format", "csv")[0])))

    assert [row["run"] for row in rows] == [row["run"] for row in answer()]
    assert list(rows[0]) == list(answer()[0])


@pytest.mark.parametrize("name", ["bloom", "bloom-176b"])
def test_as_csv_nothing_that_is_known_is_left_out(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(run(name, "--format", "csv")[0])))
    value = answer(name)
    told = {kind: [row["value"] for row in rows if row["kind"] == kind] for kind in ("issue", "event")}

    assert list(rows[0]) == ["run", "kind", "name", "value", "note", "source"]
    assert told["issue"] == [issue["text"] for issue in value["issues"]]
    assert told["event"] == [event["text"] for event in value["events"]]
    assert all(row["run"] and row["name"] and row["source"] for row in rows)
    assert [row for row in rows if (row["run"], row["name"]) == ("bloom-176b", "learning_rate")][0]["value"] == "6e-05"
    assert next(row["note"] for row in rows if row["name"] == "spike") == "iteration 31219"


def test_a_family_shows_its_runs_issues_and_events() -> None:
    out, _ = run("LLM360")
    value = answer("llm360")

    assert out.startswith("LLM360 (LLM360)\n\nrun ")
    assert "  restart: k2, checkpoint 160\n    training was restarted from checkpoint 160" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "  order_not_fixed: amber\n    each chunk is shuffled by the running generator" in out
    assert list(value) == ["family", "title", "publisher", "runs", "issues", "events", "sources"]
    assert {event["kind"] for event in value["events"]} == {"spike", "restart"}
    assert all(told["source"] for told in value["issues"] + value["events"])


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_shows_every_fact_with_its_source() -> None:
    value = answer("EleutherAI/Pythia-1B")
    out, _ = run("pythia-1b")

    assert list(value) == ["run", "family", "facts", "settings", "issues", "events"]
    assert value["facts"]["parameters"] == {
        "value": "1B",
        "note": "",
        "source": "EleutherAI/pythia README.md @ a19eecb (2025-11-15)",
    }
    unwrapped = " ".join(out.split())
    assert all(fact["source"] in unwrapped for fact in (*value["facts"].values(), *value["settings"].values()))
    assert all(issue["text"] in unwrapped and issue["source"] in unwrapped for issue in value["issues"])
    assert "  train_batch_size       1024 [" in out and "\nwhat the trainer was told\n" in out
    assert "(the README; both 1B configurations say 0.00025)" in unwrapped


@pytest.mark.parametrize("name", [released.name for released in released_runs()])
def test_lines_are_as_wide_as_the_terminal_and_addresses_stay_whole(name: str) -> None:
    out, _ = run(name)

    assert [line for line in out.splitlines() if len(line) > 80 and not re.search(r"/|\^", line)] == []
    for fact in find_run(name).facts.values():
        for place in fact.value if isinstance(fact.value, list) else ():
            if str(place).startswith(("https:", "hub:")):
                address = re.split(r" \(", str(place))[0]
                assert any(address in line for line in out.splitlines()), address


def test_a_wider_terminal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "200")
    with redirect_stdout(Terminal()) as wide:
        catalog("k2-spike-1")
    narrow, _ = run("k2-spike-1")

    assert narrow.split() == wide.getvalue().split()
    assert narrow.count("\n") > wide.getvalue().count("\n")


def test_what_the_trainer_was_told_is_a_row_too() -> None:
    rows = list(csv.DictReader(io.StringIO(run("amber", "--format", "csv")[0])))

    assert next(row["value"] for row in rows if (row["kind"], row["name"]) == ("setting", "world_size")) == "224"


def test_a_name_that_is_not_known_gets_the_nearest() -> None:
    with pytest.raises(UnknownRun, match="the nearest: pythia"):
        run("pithia")
    with pytest.raises(UnknownRun, match="no released run or family ''"):
        run("")


# --- official lists --------------------------------------------------------------------------------------------------


def write_list(folder: Path, name: str, steps: list[int]) -> Path:
    rows = [f"{step},https://olmo-checkpoints.org/ai2-llm/m/x/step{step}/" for step in steps]
    (folder / name).write_text("\n".join(["Step,Checkpoint Directory", *rows]))
    return folder / name


def test_a_list_and_its_mistakes_are_reported(tmp_path: Path) -> None:
    path = write_list(tmp_path, "tiny.csv", [0, 1000, 1000, 2000, 2500, 3000])
    out, err = run("--listing", str(path))

    assert answer("--listing", str(path)) == [
        {
            "file": "tiny.csv",
            "rows": 6,
            "unique": 5,
            "off_grid": 1,
            "kind": "duplicate_rows",
            "lines": [4],
            "text": "1 of 6 rows are there twice: step 1000",
        }
    ]
    assert "  tiny.csv, line 4: duplicate_rows\n    1 of 6 rows are there twice: step 1000\n" in out
    assert "lists: 1, mistakes: 1;" in err


def test_a_folder_of_lists_has_a_row_for_each_also_without_mistakes(tmp_path: Path) -> None:
    write_list(tmp_path, "a.csv", [0, 1000, 2000])
    write_list(tmp_path, "b.csv", [0, 1000, 2000])
    rows = list(csv.DictReader(io.StringIO(run("--listing", str(tmp_path), "--format", "csv")[0])))

    assert [(row["file"], row["rows"], row["kind"]) for row in rows] == [("a.csv", "3", ""), ("b.csv", "3", "")]


def test_a_list_that_is_none_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("Step,Checkpoint Directory\none,https://x\n")

    with pytest.raises(CorruptFile, match="bad.csv line 2: Step is 'one', which is no number"):
        run("--listing", str(tmp_path / "bad.csv"))


def test_a_list_and_a_name_are_not_taken_together(tmp_path: Path) -> None:
    with pytest.raises(click.BadParameter, match="not both"):
        run("pythia", "--listing", str(tmp_path))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published listings are not beside the checkout")
def test_the_published_lists_are_reported_with_their_counts() -> None:
    out, err = run("--listing", str(PUBLISHED))
    rows = answer("--listing", str(PUBLISHED))
    counts = {row["file"]: (row["rows"], row["unique"]) for row in rows}

    assert len(counts) == 18
    assert counts["OLMo-2-1124-13B.csv"] == (690, 650)
    assert counts["removed-2024-11-26/OLMo-7B.csv"] == (527, 527)
    assert "  OLMo-2-1124-13B.csv, line 282 and 39 more: duplicate_rows\n" in out
    assert f"lists: 18, mistakes: {sum(row['kind'] is not None for row in rows)};" in err
