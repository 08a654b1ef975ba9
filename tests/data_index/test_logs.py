"""Logs of training loops give every point they hold, whatever wrote them; what is no log is an error that says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index.errors import CorruptFile, MissingFile, UnknownLayout
from data_index.logs import FORMATS, read_log, recognise
from data_index.logs.points import MAX_NESTING, Notes, Points, Wanted
from data_index.logs.table import attempts_of, metrics_table
from data_index.metric_names import CANONICAL_NAMES, SYNONYMS, canonical_names

MEGATRON = (
    "[default0]: iteration {step:8d}/  115311 | consumed samples: {samples:12d} | elapsed time per iteration (ms): "
    "4235.1 | learning rate: 5.948E-05 | global batch size:  2048 | lm loss: {loss:.6E} | grad norm: {norm:.3f} | "
    "number of skipped iterations:   0 | number of nan iterations:   0 |\n"
)


def points_of(path: Path, notes: Notes | None = None, **wanted: Any) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) of each point, in the order of the log."""
    format = recognise(path, wanted.get("step_field"))
    found: dict[str, list[tuple[int, float]]] = {}
    for part in read_log(path, format, Wanted(**wanted), notes or Notes()):
        found.setdefault(part.name, []).extend(zip(part.steps.tolist(), part.values.tolist(), strict=True))
    return found


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def megatron(step: int, loss: float = 6.9, norm: float = 1.5) -> str:
    return MEGATRON.format(step=step, samples=step * 2048, loss=loss, norm=norm)


# --- names and attempts ----------------------------------------------------------------------------------------------


def test_no_synonym_means_two_things() -> None:
    assert sum(map(len, SYNONYMS.values())) == len(CANONICAL_NAMES)
    assert not set(CANONICAL_NAMES) & set(SYNONYMS)


def test_two_metrics_of_one_log_never_get_one_name() -> None:
    """A mean over the run beside the loss of each step must not become its second attempt."""
    names = canonical_names(["train_loss", "train/loss", "loss", "val_loss", "optim/learning_rate_group1"])

    assert names == {name: name for name in names} | {"val_loss": "validation_loss"}
    assert canonical_names(["train_loss", "train/loss"])["train/loss"] == "loss"
    assert canonical_names(["lm loss"], unclear=["lm loss"]) == {"lm loss": "lm loss"}


def test_attempts_count_how_often_a_step_was_there() -> None:
    steps = np.random.default_rng(1).integers(0, 50, 400)
    counted = [int((steps[: place + 1] == step).sum()) for place, step in enumerate(steps)]

    assert attempts_of(steps).tolist() == counted
    assert attempts_of(np.arange(5)).tolist() == [1, 1, 1, 1, 1]
    assert attempts_of(np.array([3, 3])).tolist() == [1, 2]
    assert attempts_of(np.array([], dtype=np.int64)).tolist() == []


def test_a_restart_in_another_file_goes_on_counting_attempts() -> None:
    def part(steps: list[int]) -> Points:
        return Points(name="lm loss", steps=np.array(steps), values=np.array(steps) / 10)

    table = metrics_table([("a.log", [part([1, 2, 3])]), ("b.log", [part([2, 3, 4])])], unclear=())

    assert table.select(["step", "attempt", "source"]).to_pylist() == [
        {"step": step, "attempt": attempt, "source": source}
        for step, attempt, source in (
            *((1, 1, "a.log"), (2, 1, "a.log"), (3, 1, "a.log")),
            *((2, 2, "b.log"), (3, 2, "b.log"), (4, 1, "b.log")),
        )
    ]
    assert set(table.column("name").to_pylist()) == {"loss"}
    assert set(table.column("original_name").to_pylist()) == {"lm loss"}


# --- JSON lines ------------------------------------------------------------------------------------------------------


def test_json_lines_keep_nan_infinities_nested_numbers_and_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "log.jsonl",
        '{"step": 1, "loss": 0.1, "layer": {"0": {"norm": 2}}, "note": "fine", "flag": true}\n'
        '{"step": 2, "loss": NaN, "hash": "400107"}\n\n'
        '{"step": 1, "loss": "-Infinity", "picture": {"_type": "image", "width": 3}, "empty": null}\n',
    )
    notes = Notes()
    found = points_of(path, notes)

    assert found["loss"][0] == (1, 0.1) and found["loss"][2] == (1, -math.inf)
    assert found["loss"][1][0] == 2 and math.isnan(found["loss"][1][1])
    assert {name: found[name] for name in found if name != "loss"} == {"layer/0/norm": [(1, 2.0)], "flag": [(1, 1.0)]}
    assert notes.left_out == {"note": 1, "hash": 1, "picture": 1} and notes.messages == []


def test_a_float_in_hexadecimal_wins_over_its_decimal_form(tmp_path: Path) -> None:
    exact = 5.1234567890123
    path = written(tmp_path, "log.jsonl", json.dumps({"step": 1, "ce_loss": 5.12, "hex": {"ce_loss": exact.hex()}}))

    assert points_of(path) == {"ce_loss": [(1, exact)]}


def test_the_step_is_a_trainers_own_before_the_count_of_calls(tmp_path: Path) -> None:
    path = written(tmp_path, "log.jsonl", '{"_step": 0, "train/global_step": 10, "train/loss": 2.5}\n')

    assert points_of(path) == {"_step": [(10, 0.0)], "train/loss": [(10, 2.5)]}
    assert points_of(path, step_field="_step")["train/loss"] == [(0, 2.5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"loss": 1}', r"line 2: nothing is no step \(step\)"),
        ('{"step": 1.5, "loss": 1}', "line 2: 1.5 is no step"),
        ('{"step": -1, "loss": 1}', "line 2: -1 is no step"),
        ('{"step": 1e300, "loss": 1}', "line 2: 1e[+]300 is no step"),
        ('{"step": true, "loss": 1}', "line 2: True is no step"),
        ('{"step": NaN, "loss": 1}', "line 2: nan is no step"),
        ("[1, 2]", "line 2 is not an object"),
        ('{"step": 2, "loss": }', "line 2 is not JSON"),
        ('{"step": 2, "hex": {"loss": "0xyz"}}', "line 2: a number in `hex` is none"),
        ("{" + '"a": {' * (MAX_NESTING + 2) + "}" * (MAX_NESTING + 3), "line 2: tables nested more than"),
        ('{"a":' * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_line_without_a_step_or_that_is_none_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, "log.jsonl", f'{{"step": 1, "loss": 1}}\n{line}\n{{"step": 3, "loss": 1}}\n')

    with pytest.raises(CorruptFile, match=message):
        points_of(path)


def test_a_line_that_was_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    notes = Notes()
    path = written(tmp_path, "log.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, "lo')

    assert points_of(path, notes) == {"loss": [(1, 1.0)]}
    assert "line 2 was cut off" in notes.messages[0]


# --- CSV and Parquet -------------------------------------------------------------------------------------------------


def test_csv_gives_the_numbers_that_python_reads(tmp_path: Path) -> None:
    """Every float to the last bit: they are read by another parser than Python's."""
    values = np.random.default_rng(2).uniform(-1, 1, 5000) * 10.0 ** np.random.default_rng(3).integers(-300, 300, 5000)
    lines = "".join(f"{step},{value!r}\n" for step, value in enumerate(values.tolist(), 1))
    found = points_of(written(tmp_path, "log.csv", "step,x\n" + lines))

    assert found == {"x": list(enumerate(values.tolist(), 1))}


def test_csv_cells_may_be_empty_nan_words_or_of_any_type_later(tmp_path: Path) -> None:
    text = "iteration,lm_loss,lr,file\r\n1,1,1.500E-04,a\r\n2,,+.5,b\r\n3.0,nan, 2 ,c\r\n1,-inf,oops,d\r\n"
    notes = Notes()
    found = points_of(written(tmp_path, "log.csv", text), notes)

    assert found["lr"] == [(1, 0.00015), (2, 0.5), (3, 2.0)]
    assert [step for step, _ in found["lm_loss"]] == [1, 3, 1]
    assert found["lm_loss"][0][1] == 1 and math.isnan(found["lm_loss"][1][1]) and found["lm_loss"][2][1] == -math.inf
    assert notes.left_out == {"file": 4, "lr": 1}


def test_a_file_of_several_runs_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "log.tsv", "step\trun\tloss\n1\ta\t2.5\n1\tb\t3.5\n2\ta\t2\n")

    assert points_of(path, only={"run": "b"}) == {"loss": [(1, 3.5)]}
    with pytest.raises(CorruptFile, match="no column 'seed' to choose rows by; there are step, run, loss"):
        points_of(path, only={"seed": "1"})


def test_a_column_that_names_the_metric_of_a_row_is_no_metric(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", "step,kind,value,lr\n0,tel,11.5,\n0,trl,11.25,0.5\n1,trl,11,0.25\n")

    assert points_of(path) == {"tel": [(0, 11.5)], "trl": [(0, 11.25), (1, 11.0)], "lr": [(0, 0.5), (1, 0.25)]}


def test_a_chart_of_wandb_is_of_the_run_that_it_names(tmp_path: Path) -> None:
    one = '"Step","run-1 - train/loss","run-1 - train/loss__MIN","run-1 - train/loss__MAX"\n"10","2.5","2","3"\n'
    two = '"Step","a - loss","b - loss"\n1,2,3\n'
    notes = Notes()

    assert points_of(written(tmp_path, "one.csv", one)) == {
        "train/loss": [(10, 2.5)],
        "train/loss__MIN": [(10, 2.0)],
        "train/loss__MAX": [(10, 3.0)],
    }
    assert set(points_of(written(tmp_path, "two.csv", two), notes)) == {"a - loss", "b - loss"}
    assert "holds 2 runs (a, b)" in notes.messages[0]


def test_rows_that_do_not_fit_are_errors_unless_the_file_ends_inside_one(tmp_path: Path) -> None:
    notes = Notes()
    cut = written(tmp_path, "cut.csv", "step,a,b\n1,2,3\n2,3")
    bad = written(tmp_path, "bad.csv", "step,a,b\n1,2,3\n2,3\n3,4,5\n")

    assert points_of(cut, notes) == {"a": [(1, 2.0)], "b": [(1, 3.0)]}
    assert "last line was cut off" in notes.messages[0]
    with pytest.raises(CorruptFile, match="bad.csv line 3 has 2 columns, and the header 3: '2,3'"):
        points_of(bad)


@pytest.mark.parametrize("step", ["", "x", "1.5", "-3"])
def test_the_line_of_a_row_without_a_step_is_named(step: str, tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", f"step,loss\n1,2\n\n2,3\n{step},4\n")

    with pytest.raises(CorruptFile, match="log.csv line 5: .* is no step"):
        points_of(path)


def test_parquet_keeps_types_and_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    columns = {
        "_step": pyarrow.array([0, 1, 1], pyarrow.int32()),
        "loss": pyarrow.array([0.1, None, math.nan]),
        "tokens": pyarrow.array([2**40, 2**41, None], pyarrow.uint64()),
        "note": pyarrow.array(["a", None, "b"]).dictionary_encode(),
        "half": pyarrow.array(np.array([1.5, 2.5, 3.5], np.float16)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    notes = Notes()
    found = points_of(path, notes)

    assert found["tokens"] == [(0, 2.0**40), (1, 2.0**41)] and found["half"] == [(0, 1.5), (1, 2.5), (1, 3.5)]
    assert found["loss"][0] == (0, 0.1) and found["loss"][1][0] == 1 and math.isnan(found["loss"][1][1])
    assert notes.left_out == {"note": 2}


# --- Megatron's text -------------------------------------------------------------------------------------------------


def test_megatron_lines_are_found_between_all_others(tmp_path: Path) -> None:
    text = (
        "  lr ....... 6e-05, iteration counts follow\n[rank3] WARNING: noise | loss: 1 |\n"
        + "2022-04-12 03:11:02 \x1b[1;32m"
        + megatron(31218, 2.25, 0.5).rstrip("\n")
        + "\x1b[0m\n"
        + megatron(31219, 5.5, 7.25).rstrip("\n")
        + megatron(31220, math.nan)
        + "-" * 80
        + "\n validation loss at iteration 31220 | lm loss value: 2.5E+00 | lm loss PPL: 1.2E+01 | \n"
        + megatron(31219, 5.0)
    )
    found = points_of(written(tmp_path, "train.log", text))

    assert [step for step, _ in found["lm loss"]] == [31218, 31219, 31220, 31219]
    assert found["lm loss"][1] == (31219, 5.5) and math.isnan(found["lm loss"][2][1])
    assert found["grad norm"][0] == (31218, 0.5) and found["number of skipped iterations"][0] == (31218, 0.0)
    assert found["validation lm loss value"] == [(31220, 2.5)]
    assert found["consumed samples"][0] == (31218, 31218 * 2048.0)


def test_a_mean_over_iterations_is_no_loss_of_a_step(tmp_path: Path) -> None:
    notes = Notes()
    points_of(written(tmp_path, "train.log", megatron(10) + megatron(20) + megatron(30)), notes)

    assert {"lm loss", "number of skipped iterations"} <= notes.unclear and "grad norm" not in notes.unclear
    assert "prints every 10 iterations" in notes.messages[0]


def test_of_a_megatron_line_that_was_cut_off_whole_fields_are_kept(tmp_path: Path) -> None:
    notes = Notes()
    whole = megatron(1) + megatron(2)
    found = points_of(written(tmp_path, "train.log", whole[: whole.rindex("| grad norm") - 3]), notes)

    assert [step for step, _ in found["lm loss"]] == [1] and [step for step, _ in found["learning rate"]] == [1, 2]
    assert "line 2 was cut off" in notes.messages[0]


# --- what is no log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", CorruptFile, "is empty"),
        (b"\x1f\x8b\x08" + bytes(100), UnknownLayout, "is packed with gzip: unpack it first"),
        (b"step,loss\n1,\0\n", UnknownLayout, "is no log that is recognised"),
        (b"hello world\n", UnknownLayout, "say so with --as"),
        (b"a,b\n1,2\n", UnknownLayout, "say so with --as"),
        (b"PAR1" + bytes(100) + b"PAR1", CorruptFile, "is not a whole Parquet file"),
        (b":W&B" + bytes(100), CorruptFile, "no run of W&B, or one of a version that is not known"),
        (b"step," + b"x" * 9_000_000, UnknownLayout, "say so with --as"),
    ],
)
def test_what_is_no_log_is_refused(content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, "log", content)

    with pytest.raises(error, match=message):
        points_of(path)


def test_folders_hold_what_they_are_named_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match="holds no event files of TensorBoard"):
        recognise(tmp_path)
    with pytest.raises(MissingFile):
        recognise(tmp_path / "nothing")


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "lm-eval"])
def test_noise_is_a_stated_error_in_every_format(format: str, tmp_path: Path) -> None:
    """Forced into a format, no file may end in anything but points or a stated error."""
    random = np.random.default_rng(4)
    for number in range(20):
        path = written(tmp_path, f"noise-{number}", random.bytes(int(random.integers(1, 4000))))
        try:
            found = list(read_log(path, format, Wanted(), Notes()))
        except CorruptFile:
            continue
        assert found == []
