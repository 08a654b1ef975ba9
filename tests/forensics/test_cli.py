import csv
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_index.kinds import table_of_rows
from data_index.workspace import Workspace, learn
from forensics.cli.main import main
from forensics.cli.program import COMMANDS
from forensics.sample_run import SampleSpec
from forensics.walkthrough import demo

ROOT = Path(__file__).parents[2]
VERBS = [command.__name__ for command in COMMANDS]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def forensics(workspace: Workspace | None, *arguments: str) -> Done:
    """Run the command line in this process: importing torch anew for each call would take most of the time."""
    given = ["forensics", *arguments, *(["--workspace", str(workspace.folder)] if workspace else [])]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", given)
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def test_the_installed_program_answers_from_any_folder(tiny_shared: Workspace, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("forensics")
    command = [program, "runs", "--workspace", tiny_shared.folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    assert done.returncode == 0 and "tiny" in done.stdout


def answer(workspace: Workspace, *arguments: str) -> Any:
    done = forensics(workspace, *arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_an_example_and_a_line_in_the_readme(verb: str) -> None:
    command = next(c for c in COMMANDS if c.__name__ == verb)
    readme = (ROOT / "README.md").read_text()

    assert command.__doc__ and f"Example: forensics {verb}" in command.__doc__
    assert f"forensics {verb}" in readme


def test_help_lists_every_verb() -> None:
    done = forensics(None, "--help")

    assert done.returncode == 0 and all(f"  {verb} " in done.stdout for verb in VERBS)


def test_tokens_has_the_documented_keys(tiny_shared: Workspace, tmp_path: Path) -> None:
    """On a folder, which keeps nothing in the shared workspace."""
    run = tiny_shared.run("tiny")
    model = ("tokens", str(tiny_shared.checkpoint(run, 20).location), "--tokenizer", str(run.tokenizer))
    rows = answer(tiny_shared, *model)
    keys = ["token_id", "text", "category", "indicator", "rank", "max_probability", "verified"]

    assert list(rows[0])[:7] == keys and len(rows) == 384 and rows[0]["rank"] == 1
    assert len(answer(tiny_shared, *model, "--limit", "3", "--unused", "[125-126,178-188]")) == 3
    plan = answer(tiny_shared, *model, "--plan")
    assert {row["tensor"] for row in plan} >= {"model.embed_tokens.weight"}
    assert all(row["bytes_to_read"] > 0 and row["bytes_to_fetch"] == 0 for row in plan)
    compared = answer(tiny_shared, *model, "--compare", "tiny@5", "--indicator", "input_norm")
    assert {"indicator_other", "rank_change", "change"} <= set(compared[0])
    done = forensics(tiny_shared, *model, "-o", str(tmp_path / "t.csv"), "--report", str(tmp_path / "r.md"))
    assert done.returncode == 0 and (tmp_path / "r.png").exists()
    assert len(list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))) >= 385
    assert forensics(tiny_shared, *model, "--unused", "many").returncode == 2


def test_batch_has_the_documented_keys(tiny_shared: Workspace) -> None:
    rows = answer(tiny_shared, "batch", "tiny", "8", "--tokens")
    keys = {"step", "attempt", "position", "instance", "file", "offset", "num_tokens", "document_ids", "masked"}

    assert len(rows) == 8 and keys | {"token_ids"} <= set(rows[0])
    assert all(len(row["token_ids"]) == row["num_tokens"] == 64 for row in rows)


def test_checkpoints_where_and_replay_have_the_documented_keys(tiny_shared: Workspace) -> None:
    checkpoints = answer(tiny_shared, "checkpoints", "tiny")
    readings = answer(tiny_shared, "where", "tiny", "--instance", "50")
    report = answer(tiny_shared, "replay", "tiny", "5:10", "--device", "cpu")

    assert [row["step"] for row in checkpoints] == [0, 5, 10, 15, 20]
    assert {"step", "tokens", "location", "states", "available", "issues"} <= set(checkpoints[0])
    assert [row["step"] for row in readings][:2] == [3, 11]
    assert {"step", "attempt", "position", "instance", "file", "offset"} <= set(readings[0])
    assert report["grade"] == "R0" and report["weights_equal"] is True and report["fingerprint_matches"] is True
    assert report["first_divergent_step"] is None and report["max_abs_loss_difference"] == 0.0
    keys = {"step", "loss", "loss_logged", "grad_norm", "grad_norm_logged", "learning_rate"}
    assert len(report["steps"]) == 5 and keys <= set(report["steps"][0])


def test_fork_and_compare_have_the_documented_keys(tiny: Workspace) -> None:
    edit = ["--edit", "drop where:\"source LIKE '%.pyc.z'\" @9"]
    fork = answer(tiny, "fork", "tiny", "--from", "5", "--num-steps", "10", *edit)
    rows = answer(tiny, "compare", fork["id"])

    assert (fork["parent"], fork["from_step"], len(fork["steps"])) == ("tiny", 5, 10)
    assert set(rows[0]) == {"fork", "metric", "step", "treatment", "null_low", "null_high", "p_value"}
    assert [path.suffix for path in sorted((tiny.folder / "findings").glob("compare-*"))] == [".html", ".json", ".png"]


def test_exposures_have_the_documented_keys_and_a_picture(tiny: Workspace, tmp_path: Path) -> None:
    counts = ["as_input", "as_target", "masked_target", "filtered_input", "filtered_target", "not_applied"]
    cost = answer(tiny, "exposures", "tiny", "--plan")
    assert (cost["tokens"], cost["download"]) == (20 * 8 * 64, 0)

    rows = answer(tiny, "exposures", "tiny", "-o", str(tmp_path / "counts.png"))
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert set(rows[0]) == {"step", "seen_ids", "new_ids", *counts}
    assert rows[-1]["as_input"] == 20 * 8 * 64
    (row,) = answer(tiny, "exposures", "tiny", "--steps", "0:1", "--token", "10")
    assert set(row) == {"step", "token_id", *counts, "first_step", "last_step"}
    assert (row["step"], row["token_id"], row["first_step"]) == (1, 10, 1)
    assert answer(tiny, "exposures", "tiny", "--steps", "0:1", "--token", "999", "-o", str(tmp_path / "c.html")) == []
    assert (tmp_path / "counts.png").read_bytes()[:4] == b"\x89PNG" and "by rank" in (tmp_path / "c.html").read_text()


def test_trajectory_has_the_documented_keys_and_a_picture(tiny: Workspace, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": step, "tokens": 512 * step, "probe": "loss", "metric": "loss", "value": 6 - step / 10, "unit": "nats"}
        for step in (0, 5, 15, 20)
    ]
    rows += [row | {"probe": "norms", "metric": f"norm, layer {n}", "value": 1.0 + n} for row in rows for n in range(9)]
    learn(tiny.home("tiny"), "probes", table_of_rows("probes", rows, "test"))
    found = answer(tiny, "trajectory", "tiny", "loss", "norms")

    assert len(found) == 40 and {"step", "tokens", "probe", "metric", "value", "low", "high", "unit"} <= set(found[0])
    assert (found[1]["run"], found[1]["step"], found[1]["tokens"], found[1]["value"]) == ("tiny", 5, 2560, 5.5)
    assert [path.suffix for path in sorted((tiny.folder / "findings").glob("trajectory-*"))] == [
        ".html",
        ".json",
        ".png",
    ]
    options = ["--metric", "norm, layer [28]", "--metric", "norm, layer 1"]
    assert forensics(tiny, "trajectory", "tiny", "norms", *options).returncode == 1  # brackets are no pattern
    options = ["--metric", "*layer 2", "--metric", "norm, layer 1", "--x", "tokens", "-o", str(tmp_path / "p.html")]
    assert len(answer(tiny, "trajectory", "tiny", "norms", *options)) == 8 and (tmp_path / "p.html").exists()
    done = forensics(tiny, "trajectory", "tiny", "norms")
    assert len(done.stdout.splitlines()) == 2 + 8 * 4 and "8 of 9 metrics are shown and drawn, 1 are not" in done.stderr
    assert "tiny: 1 checkpoint lacks a value that others have: 10" in done.stderr
    assert forensics(tiny, "trajectory", "tiny", "loss", "--measured-only", "--published-only").returncode == 2
    assert forensics(tiny, "trajectory", "tiny", "loss", "--breaks", "--crossings").returncode == 2
    assert answer(tiny, "trajectory", "tiny", "loss", "--breaks") == []  # four values are too few
    assert (
        "curves cross where there are two runs" in forensics(tiny, "trajectory", "tiny", "loss", "--crossings").stderr
    )


def test_at_shows_everything_under_the_key(tiny_shared: Workspace) -> None:
    found = answer(tiny_shared, "at", "tiny", "8")

    assert (found["epoch"], found["checkpoint_before"], found["checkpoint_after"]) == (1, 5, 10)
    assert found["metrics"]["loss"] > 0 and len(found["instances"]) == 8 and found["read_by_tag"]


def test_csv_and_table_print_the_same_rows(tiny_shared: Workspace) -> None:
    as_csv = forensics(tiny_shared, "batch", "tiny", "5:15", "--by", "file", "--format", "csv").stdout
    table = forensics(tiny_shared, "batch", "tiny", "5:15", "--by", "file").stdout.splitlines()
    rows = list(csv.DictReader(io.StringIO(as_csv)))

    assert [row["file"] for row in rows] == [line.split()[0] for line in table[2:]]


def test_rows_go_to_stdout_and_messages_to_stderr(tiny_shared: Workspace) -> None:
    done = forensics(tiny_shared, "batch", "tiny", "8", "--format", "json")

    json.loads(done.stdout)
    assert "order of tiny: exact (the trainer's record" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch", "tinny", "8"], "no run or fork is called 'tinny'.*there are: tiny"),
        (["batch", "tiny", "21"], r"tiny took steps 1\.\.20, not 21"),
        (["batch", "tiny", "0"], "checkpoint 0 is the initialization; the first step is 1"),
        (["batch", "tiny", "8", "--instance", "9999"], "did not read instance 9999"),
        (["batch", "tiny", "8", "--by", "colour"], "--by takes document, file, source, tag"),
        (["where", "tiny", "--instance", "9999"], r"tiny has instances 0\.\."),
        (["where", "tiny", "--document", "9999"], "tiny has no document 9999"),
        (["where", "tiny"], "exactly one of --text, --document, --instance and --token"),
        (["sql", "drop table runs"], "exactly one SELECT"),
        (["replay", "tiny", "7:10"], "no checkpoint at step 7; the nearest are 5 and 10"),
        (["fork", "tiny", "--from", "5", "--num-steps", "2", "--edit", "delete all"], "names no operation"),
        (["fork", "tiny", "--from", "5", "--num-steps", "2", "--set", "lr=3"], "--set takes recipe.field=value"),
        (["fork", "tiny", "--from", "5", "--num-steps", "2", "--edit", "@none.toml"], "none.toml"),
        (["compare", "tiny"], "tiny is a run, not a fork"),
        (["add", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_a_stated_failure_exits_with_1_and_one_clear_line(
    tiny_shared: Workspace, arguments: list[str], message: str
) -> None:
    import re

    done = forensics(tiny_shared, *arguments)

    assert done.returncode == 1 and done.stdout == ""
    assert re.search(message, done.stderr, re.DOTALL) and "Traceback" not in done.stderr


def test_wrong_usage_exits_with_2(tiny_shared: Workspace) -> None:
    assert forensics(tiny_shared, "batch").returncode == 2
    assert forensics(tiny_shared, "nonsense").returncode == 2


def test_plan_costs_nothing_and_says_what_it_would(tiny: Workspace) -> None:
    cost = answer(tiny, "replay", "tiny", "0:20", "--plan")

    assert (cost["steps"], cost["tokens"], cost["download"]) == (20, 20 * 8 * 64, 0)
    assert cost["memory_bytes"] > cost["parameters"] * 16 and cost["seconds"] > 0
    assert not (tiny.folder / "replays").exists()


def test_edits_can_come_from_a_file(tiny: Workspace, tmp_path: Path) -> None:
    (tmp_path / "edits.toml").write_text('edits = ["shuffle @5:6 seed=1", "mask span:50:1-3"]')
    given = ["--edit", f"@{tmp_path / 'edits.toml'}", "--set", "recipe.schedule.warmup_steps=1"]
    fork = answer(tiny, "fork", "tiny", "--from", "5", "--num-steps", "8", *given)

    assert len(fork["edits"]) == 2


def test_audit_names_what_is_damaged_and_exits_with_1(tiny: Workspace, tiny_copy: Path) -> None:
    assert forensics(tiny, "audit", "tiny", "--deep").returncode == 0
    (tiny_copy / "tokens" / "text-0.bin").write_bytes(b"\0" * (tiny_copy / "tokens" / "text-0.bin").stat().st_size)
    state = tiny_copy / "checkpoints" / "step10" / "model.safetensors"
    raw = bytearray(state.read_bytes())
    raw[-5] ^= 1
    state.write_bytes(raw)
    (tiny_copy / "order" / "epoch-1.npy").write_bytes(b"\x93NUMPY")
    shutil.rmtree(tiny_copy / "checkpoints" / "step15")
    (tiny_copy / "checkpoints" / "step20" / "optimizer.safetensors").unlink()
    done = forensics(tiny, "audit", "tiny", "--deep")

    assert done.returncode == 1
    for named in ("text-0.bin: changed: block 0", "step10 model.safetensors", "order of epoch 1", "checkpoint 20"):
        assert named.replace("step10", "checkpoint 10") in done.stderr


def test_text_from_data_cannot_steer_the_terminal(tiny: Workspace) -> None:
    from forensics.cli.output import show_value

    assert show_value("a\x1b[31mred\u202e") == "a\\x1b[31mred\\u202e"


def test_the_truth_file_is_never_needed(
    tiny: Workspace, tiny_copy: Path, tiny_spec: SampleSpec, tmp_path: Path
) -> None:
    """truth.json says what was planted; no verb may read it."""
    (tiny_copy / "truth.json").unlink()
    shutil.copytree(tiny_copy, tmp_path / "demo" / "trained" / "tiny")
    demo(workspace=Workspace(tmp_path / "demo"), spec=tiny_spec, show=lambda line: None)
    fork = answer(tiny, "fork", "tiny", "--from", "5", "--num-steps", "5", "--edit", "shuffle seed=2")
    (tmp_path / "log.csv").write_text("step,loss\n1,2.5\n")
    (tmp_path / "step5.json").write_text('{"results": {"sciq": {"acc": 0.5}}}')
    runs = [
        ["add", str(tiny_copy), "--name", "again"],
        ["import", "again", str(tmp_path / "log.csv"), str(tmp_path / "step5.json")],
        ["trajectory", "again", "task:sciq"],
        ["runs"],
        ["show", "tiny"],
        ["checkpoints", "tiny"],
        ["at", "tiny", "9"],
        ["batch", "tiny", "5:15", "--by", "tag"],
        ["documents", "tiny"],
        ["tag", "tiny", "--provenance"],
        ["where", "tiny", "--text", "import"],
        ["ngrams", "tiny"],
        ["repeats", "tiny"],
        ["sql", "from runs"],
        ["audit", "tiny", "--deep"],
        ["forks", "tiny"],
        ["jobs"],
        ["exposures", "tiny"],
        ["spikes", "tiny"],
        ["probe", "tiny", "loss", "norms"],
        ["probes", "tiny"],
        ["tokens", "tiny"],
        ["blame", "tiny", "9", "--top", "2", "--nulls", "2"],
        ["replay", "tiny", "0:20"],
        ["pack", "tiny", "-o", str(tmp_path / "tiny.zip")],
        ["open", str(tmp_path / "tiny.zip"), "--name", "theirs"],
        ["report", "theirs", "-o", str(tmp_path / "tiny.md")],
        ["cite", "theirs"],
        ["compare", fork["id"]],
        ["prune", fork["id"], "--keep-every", "5"],
        ["remove", fork["id"], "--yes"],
    ]
    codes = {" ".join(arguments[:1]): forensics(tiny, *arguments).returncode for arguments in runs}

    assert set(codes.values()) == {0}, codes
    kept = {row["finding"]: row["command"] for row in answer(tiny, "sql", "from findings")}
    assert kept["blame-tiny-9"] == "forensics blame tiny 9 --top 2 --nulls 2" and "spikes-tiny" in kept
    assert {verb for verb in VERBS if verb not in codes} == {"app", "catalog", "demo", "fork"}
    for package in ("data_index", "replay", "probes", "app"):
        assert not any("truth.json" in path.read_text() for path in (ROOT / package).rglob("*.py"))
    assert [p.name for p in (ROOT / "forensics").rglob("*.py") if "truth.json" in p.read_text()] == ["sample_data.py"]
