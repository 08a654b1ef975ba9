"""Result files of lm-eval are read in their forms, and what contradicts itself is left out and said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import CorruptFile, MissingFile
from data_index.evaluations import read_evaluations, read_result_file, unit_of_metric
from data_index.kinds import KINDS, table_of_rows
from data_index.metric_queries import rows_only_in


def result(folder: Path, name: str, revision: str | None = None, **tasks: Any) -> Path:
    arguments = f"pretrained=somebody/model,revision={revision}" if revision else "pretrained=somebody/model"
    content = {"results": tasks, "versions": {}, "config": {"model_args": arguments, "num_fewshot": 5}}
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_numbers_come_with_their_standard_errors(tmp_path: Path) -> None:
    path = result(tmp_path, "70m_step1000.json", "step1000", sciq={"acc": 0.5, "acc_stderr": 0.01, "acc_norm": 0.6})
    rows = read_result_file(path)

    assert [(r.step, r.task, r.metric, r.value, r.stderr, r.num_fewshot) for r in rows] == [
        (1000, "sciq", "acc", 0.5, 0.01, 5),
        (1000, "sciq", "acc_norm", 0.6, None, 5),
    ]


def test_filters_are_kept_apart_and_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    """As lm-eval writes since 0.4; a perplexity that overflowed is infinite."""
    tasks = {"acc,none": 0.5, "acc_stderr,none": 0.01, "alias": "sciq", "ppl,none": float("inf"), "ok": True}
    tasks |= {"em,strict": 0.2, "em_stderr,strict": 0.02, "em,flexible": 0.3, "em_stderr,flexible": "N/A"}
    rows = read_result_file(result(tmp_path, "step2.json", sciq=tasks))

    assert [(r.metric, r.value, r.stderr) for r in rows] == [
        ("acc", 0.5, 0.01),
        ("ppl", float("inf"), None),
        ("em,strict", 0.2, 0.02),
        ("em,flexible", 0.3, None),
    ]


@pytest.mark.parametrize(
    ("name", "revision", "step"),
    [
        ("2.8b_step143000.json", None, 143000),
        ("results.json", "step512", 512),
        ("results.json", "stage1-step1000-tokens5B", 1000),
        ("global_step5.json", "global_step5", 5),
    ],
)
def test_the_step_is_in_the_name_or_in_the_revision(name: str, revision: str | None, step: int, tmp_path: Path) -> None:
    path = result(tmp_path, name, revision, sciq={"acc": 0.5})

    assert {row.step for row in read_result_file(path)} == {step}


def test_results_of_todays_harness_state_their_shots_by_task(tmp_path: Path) -> None:
    """What lm-eval 0.4.13 writes: `n-shot` beside the results, and how many instances there were among the numbers."""
    path = tmp_path / "step7.json"
    numbers = {"alias": "sciq", "sample_len": 40, "acc,none": 0.5, "acc_stderr,none": 0.1}
    path.write_text(json.dumps({"results": {"sciq": numbers, "piqa": numbers}, "n-shot": {"sciq": 5, "piqa": 0}}))
    found = [(row.task, row.metric, row.num_fewshot, row.stderr) for row in read_result_file(path)]
    assert found == [("sciq", "acc", 5, 0.1), ("piqa", "acc", 0, 0.1)]


def test_files_that_contradict_themselves_are_left_out_and_said(tmp_path: Path) -> None:
    result(tmp_path, "step1.json", "step1", sciq={"acc": 0.5})
    result(tmp_path, "step2.json", "step4", sciq={"acc": 0.5})
    result(tmp_path, "nothing.json", sciq={"acc": 0.5})
    (tmp_path / "broken.json").write_text("{")
    found = read_evaluations(tmp_path)

    assert found.steps == [1]
    said = dict(found.problems)
    assert set(said) == {"step2.json", "nothing.json", "broken.json"}
    assert "named for step 2, and its config says that revision step4" in said["step2.json"]
    assert "names no step" in said["nothing.json"]


def test_a_whole_trajectory_in_one_file(tmp_path: Path) -> None:
    results = {"sciq": {"acc": [0.2, 0.4], "acc_stderr": [0.01, 0.02]}}
    (tmp_path / "run_agg.json").write_text(json.dumps({"checkpoints": [10, 20], "results": results}))
    (tmp_path / "short_agg.json").write_text(json.dumps({"checkpoints": [10, 20, 30], "results": results}))
    found = read_evaluations(tmp_path)

    assert [(r.step, r.value, r.stderr) for r in found.rows] == [(10, 0.2, 0.01), (20, 0.4, 0.02)]
    assert "no list of 3 numbers" in dict(found.problems)["short_agg.json"]


def test_two_files_that_say_different_things_of_one_step_are_told(tmp_path: Path) -> None:
    result(tmp_path, "a_step1.json", sciq={"acc": 0.5})
    result(tmp_path, "b_step1.json", sciq={"acc": 0.6})
    found = read_evaluations(tmp_path)

    assert [row.value for row in found.rows] == [0.5]
    assert "says 0.6 of sciq acc at step 1, a_step1.json 0.5" in dict(found.problems)["b_step1.json"]


def test_a_folder_without_evaluations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="holds no .json file of evaluations"):
        read_evaluations(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(CorruptFile, match="no file holds evaluations of a step; the first says: .*is not an object"):
        read_evaluations(tmp_path)


def test_published_files_are_read_whole() -> None:
    fixtures = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "metrics"
    if not fixtures.is_dir():
        pytest.skip("published metrics are not beside the checkout")
    pythia = read_evaluations(fixtures / "pythia" / "pythia-2.8b")
    bloom = read_evaluations(fixtures / "bigscience" / "tr3d-1B3-oscar-checkpoints_agg.json")

    assert (len(pythia.steps), pythia.problems) == (27, ())
    assert {row.value for row in pythia.rows if (row.step, row.task, row.metric) == (0, "lambada_openai", "acc")} == {0}
    assert bloom.steps[0] == 19500 and len(bloom.rows) > 1000


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "task", "unit"),
    [
        ("acc", "sciq", "share"),
        ("acc_norm", "sciq", "share"),
        ("acc, 5-shot", "sciq", "share"),
        ("exact_match,strict-match", "gsm8k", "share"),
        ("em", "triviaqa", "share"),
        ("f1", "record", "share"),
        ("f1", "squadv2", "percent"),
        ("pass@10", "humaneval", "share"),
        ("ppl", "lambada", "perplexity"),
        ("perplexity,none", "lambada_openai", "perplexity"),
        ("word_perplexity", "wikitext", "perplexity per word"),
        ("byte_perplexity", "wikitext", "perplexity per byte"),
        ("bits_per_byte", "wikitext", "bits per byte"),
        ("account", "bank", ""),
        ("embedding", "sts", ""),
        ("mcc", "cola", ""),
        ("bleu", "wmt14", ""),
    ],
)
def test_the_unit_follows_from_the_metric(metric: str, task: str, unit: str) -> None:
    assert unit_of_metric(metric, task) == unit


def test_evaluations_from_before_units_were_kept_are_the_same_points(tmp_path: Path) -> None:
    """Otherwise the same files, imported again, would stand twice in every table."""
    path = result(tmp_path, "step1.json", sciq={"acc": 0.5, "acc_norm": 0.75})
    rows = [{name: getattr(row, name) for name in KINDS["evaluations"]} for row in read_result_file(path)]
    table = table_of_rows("evaluations", rows, path)
    before = table.drop_columns(["unit"])

    assert table.column("unit").to_pylist() == ["share", "share"]
    assert rows_only_in("evaluations", table, before) == rows_only_in("evaluations", before, table) == 0
    assert rows_only_in("evaluations", table, before.slice(1)) == 1
