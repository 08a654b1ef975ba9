"""Tables as files: what is written is what was there."""

import csv
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_index.errors import InvalidRange
from data_index.exports import write_table
from data_index.store import run_query
from data_index.workspace import Workspace

TABLE = pyarrow.table(
    {
        "step": pyarrow.array([1, 2, None], pyarrow.int64()),
        "value": [0.1, math.nan, math.inf],
        "ids": pyarrow.array([[1, 2], [], None], pyarrow.list_(pyarrow.int64())),
        "text": ['a "quoted", line\nand another', "ü", None],
    }
)


def test_parquet_keeps_everything(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE)

    assert str(pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()) == str(TABLE.to_pylist())


def test_csv_has_lists_as_json(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", TABLE)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["ids"] for row in rows] == ["[1, 2]", "[]", ""]
    assert [row["value"] for row in rows] == ["0.1", "nan", "inf"]
    assert [row["text"] for row in rows] == ['a "quoted", line\nand another', "ü", ""]
    assert [row["step"] for row in rows] == ["1", "2", ""]


def test_json_lines_are_json_and_know_no_nan(tmp_path: Path) -> None:
    write_table(tmp_path / "a.jsonl", TABLE)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()

    assert [json.loads(line) for line in lines] == [
        {"step": 1, "value": 0.1, "ids": [1, 2], "text": 'a "quoted", line\nand another'},
        {"step": 2, "value": None, "ids": [], "text": "ü"},
        {"step": None, "value": None, "ids": None, "text": None},
    ]


def test_a_query_comes_back_the_same_from_every_form(tiny_shared: Workspace, tmp_path: Path) -> None:
    table = run_query(tiny_shared, "SELECT step, position, instance, file FROM batches ORDER BY ALL")
    rows = table.to_pylist()
    for suffix in ("parquet", "csv", "jsonl"):
        write_table(tmp_path / f"rows.{suffix}", table)

    assert len(rows) == 160
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("name", ["rows", "rows.xlsx", "rows.PARQUET", "rows.json"])
def test_a_name_that_says_no_form_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRange, match="its name ends in none of .parquet, .csv, .jsonl"):
        write_table(tmp_path / name, TABLE)
    assert list(tmp_path.iterdir()) == []
