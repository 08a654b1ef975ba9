"""What is planted in a copy of a run is named; what is sound raises no alarm; what was read is not read again."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_index.artifacts import Artifact, artifacts_of
from data_index.errors import CorruptFile, MissingFile, NotWritable, UnknownRun
from data_index.registration import add
from data_index.workspace import Workspace
from forensics import soundness
from forensics.audit_picture import picture
from forensics.audit_plan import plan_audit
from forensics.audit_rows import row
from forensics.equal_files import equal_file_rows
from forensics.figure import Matrix, shown_names, write_figure
from forensics.listing_gaps import gap_rows, gaps_of
from forensics.named_steps import optimizer_step_rows
from forensics.sample_run import SampleSpec, train_sample_run
from forensics.soundness import AuditResult, audit
from tests.conftest import FIXTURES
from tests.forensics import test_neox_replay as neox
from tests.forensics.test_cli import answer, forensics
from tests.forensics.walked_run import added, carry, weights_of, write_walked_run


@pytest.fixture(scope="session")
def every_step(tiny_spec: SampleSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a checkpoint at each of its 20 steps."""
    folder = tmp_path_factory.mktemp("every") / "every"
    train_sample_run(folder, replace(tiny_spec, name="every", save_every=1))
    return folder


@pytest.fixture(scope="session")
def other_run(tiny_spec: SampleSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another seed."""
    folder = tmp_path_factory.mktemp("other") / "other"
    train_sample_run(folder, replace(tiny_spec, name="other", seed=7))
    return folder


@pytest.fixture
def every(every_step: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(every_step, tmp_path / "every"))


def weights_file(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step{step}" / "model.safetensors"


def flip(path: Path, bit: int = 0, from_end: int = 5) -> None:
    raw = bytearray(path.read_bytes())
    raw[-from_end] ^= 1 << bit
    path.write_bytes(raw)


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside), other.rename(one), aside.rename(other)


def failures(result: AuditResult) -> dict[str, list[list[int]]]:
    """Check -> steps of each failure."""
    found: dict[str, list[list[int]]] = {}
    for failed in result.failed:
        found.setdefault(failed["check"], []).append(failed["steps"] or [failed["step"]])
    return found


def detail(result: AuditResult, check: str) -> str:
    return " ".join(failed["detail"] for failed in result.failed if failed["check"] == check)


# --- sound runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_sound_runs_raise_no_alarm(
    deep: bool, tiny_shared: Workspace, core_shared: Workspace, every_step: Path, tmp_path: Path
) -> None:
    add(every_step, workspace=Workspace(tmp_path))
    for workspace, name in (
        (tiny_shared, "tiny"),
        (core_shared, "core"),
        (core_shared, "skip"),
        (core_shared, "olmo"),
        (Workspace(tmp_path), "every"),
    ):
        assert audit(name, deep=deep, workspace=workspace).failed == [], name


def test_rows_have_the_documented_keys_and_results(tiny_shared: Workspace) -> None:
    result = audit("tiny", workspace=tiny_shared)
    keys = {"artifact", "step", "check", "result", "detail", "num_bytes", "checked_at"}

    assert all(keys <= set(found) for found in result.rows)
    assert {found["result"] for found in result.rows} <= {"ok", "failed", "expected", "not known"}
    there = {found["artifact"]: found for found in result.rows if found["check"] == "available"}
    assert there["checkpoint 10/model.safetensors"]["num_bytes"] > 100_000
    assert {"text-0.bin", "tokenizer", "index.duckdb"} <= set(there)
    steps = [found["step"] for found in result.rows]
    assert steps == sorted(steps, key=lambda step: -1 if step is None else step)


def test_few_checkpoints_have_no_pattern(core_shared: Workspace) -> None:
    found = [r for r in audit("core", workspace=core_shared).rows if r["check"] == "continuity"]

    assert [(r["result"], "a pattern takes 4" in r["detail"]) for r in found] == [("not known", True)]


def test_a_sample_hash_of_all_weights_is_the_trainers_own(tiny_shared: Workspace) -> None:
    """The native format states the hash of a checkpoint's weights: reading them one by one gives the same."""
    rows = audit("tiny", deep=True, workspace=tiny_shared).rows
    said = [r["detail"] for r in rows if r["check"] == "content" and r["artifact"].endswith("model.safetensors")]

    assert len(said) == 5 and all("as stated" in text for text in said)


# --- planted faults --------------------------------------------------------------------------------------------------


def test_each_planted_fault_is_named_and_nothing_else(
    every: Path, other_run: Path, workspace: Workspace, tmp_path: Path
) -> None:
    exchange(every / "checkpoints" / "step3", every / "checkpoints" / "step12")
    shutil.copy(weights_file(every, 7), weights_file(every, 17))
    shutil.copy(weights_file(other_run, 10), weights_file(every, 9))
    cut = weights_file(every, 14)
    cut.write_bytes(cut.read_bytes()[:-100])
    flip(weights_file(every, 1))
    shutil.rmtree(every / "checkpoints" / "step5")
    add(every, workspace=workspace)
    result = audit("every", deep=True, workspace=workspace)

    assert failures(result) == {
        "content": [[1], [9], [17]],
        "step": [[3], [12]],
        "optimizer step": [[3], [12]],
        "numbers": [[1]],
        "elements": [[1]],
        "continuity": [[3, 12], [9]],
        "reads": [[14]],
        "equal bytes": [[17]],
    }
    assert "steps 3 and 12 hold each other's weights" in detail(result, "continuity")
    assert "fit nowhere in this run" in detail(result, "continuity")
    assert "step 17 carries the weights of step 7" in detail(result, "equal bytes")
    assert "step14/model.safetensors is not a whole safetensors file" in detail(result, "reads")
    assert [r["detail"] for r in result.rows if r["check"] == "gaps"] == ["gap: 5..5 (1 step of the 1-grid)"]


@pytest.mark.parametrize(("one", "other"), [(0, 5), (5, 10), (0, 10), (10, 15), (15, 20), (5, 20)])
def test_exchanged_weights_are_found_among_five_without_reading_all(
    one: int, other: int, tiny_copy: Path, workspace: Workspace
) -> None:
    exchange(weights_file(tiny_copy, one), weights_file(tiny_copy, other))
    add(tiny_copy, workspace=workspace)

    assert failures(audit("tiny", workspace=workspace)) == {"continuity": [[one, other]]}


@pytest.mark.parametrize("step", [0, 5, 10, 15, 20])
def test_weights_of_another_run_are_found_wherever_they_are(
    step: int, tiny_copy: Path, other_run: Path, workspace: Workspace
) -> None:
    shutil.copy(weights_file(other_run, step), weights_file(tiny_copy, step))
    add(tiny_copy, workspace=workspace)

    assert failures(audit("tiny", workspace=workspace)) == {"continuity": [[step]]}


def test_final_weights_at_early_steps_are_said_to_be_that(every: Path, workspace: Workspace) -> None:
    for step in range(1, 7):
        shutil.copy(weights_file(every, 20), weights_file(every, step))
    add(every, workspace=workspace)
    result = audit("every", workspace=workspace)

    assert failures(result) == {"equal bytes": [[1, 2, 3, 4, 5, 6]]}
    assert "final weights at earlier steps: steps 1, 2, 3, 4, 5 and 6" in detail(result, "equal bytes")


def test_another_model_is_named(tiny_copy: Path, workspace: Workspace) -> None:
    tensors = load_file(weights_file(tiny_copy, 10))
    tensors["model.norm.weight"] = torch.ones(8)
    save_file(tensors, weights_file(tiny_copy, 10))
    add(tiny_copy, workspace=workspace)
    result = audit("tiny", workspace=workspace)

    assert failures(result) == {"continuity": [[10]]}
    assert "another model: 1 parameters differ" in detail(result, "continuity")


@pytest.mark.parametrize("step", [0, 10, 20])
def test_a_flipped_exponent_is_named_with_parameter_and_index(step: int, tiny_copy: Path, workspace: Workspace) -> None:
    tensors = load_file(weights_file(tiny_copy, step))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(torch.int32).view(-1)[77] ^= 1 << 30
    save_file(tensors, weights_file(tiny_copy, step))
    add(tiny_copy, workspace=workspace)
    shallow, deep = audit("tiny", workspace=workspace), audit("tiny", deep=True, workspace=workspace)

    assert failures(shallow) == {"numbers": [[step]]} and f"{name}[77]" in detail(shallow, "numbers")
    assert {"content", "elements"} <= set(failures(deep)) and "continuity" not in failures(deep)
    assert f"{name}[77] is " in detail(deep, "elements")


def test_elements_that_are_no_numbers_are_named(tiny_copy: Path, workspace: Workspace) -> None:
    tensors = load_file(weights_file(tiny_copy, 10))
    tensors["model.norm.weight"][3] = float("nan")
    tensors["model.norm.weight"][4] = float("inf")
    save_file(tensors, weights_file(tiny_copy, 10))
    add(tiny_copy, workspace=workspace)
    result = audit("tiny", workspace=workspace)

    assert failures(result) == {"numbers": [[10]]}
    assert detail(result, "numbers") == "model.norm.weight[3] = nan, model.norm.weight[4] = inf"


def test_a_bit_that_flips_later_is_found_in_files_that_state_no_hash(tmp_path: Path, workspace: Workspace) -> None:
    folder = write_walked_run(tmp_path / "run", range(0, 6000, 1000))
    added(folder, workspace)
    assert audit("walked", workspace=workspace).failed == []
    flip(folder / "step3000" / "model.safetensors")
    result = audit("walked", workspace=workspace)

    assert failures(result) == {"hash": [[3000]]}
    assert (
        "first seen 20" in detail(result, "hash")
        and result.failed[0]["artifact"] == "checkpoint 3000/model.safetensors"
    )
    assert failures(audit("walked", deep=True, workspace=workspace)) == {"hash": [[3000]]}  # it does not get used to it


def test_what_the_publisher_states_of_a_file_is_compared(tmp_path: Path, workspace: Workspace) -> None:
    """The hub's client leaves a note beside what it downloads."""
    folder = write_walked_run(tmp_path / "run", range(0, 6000, 1000))
    note = folder / "step2000" / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'c' * 40}\n{'a' * 64}\n1700000000.0\n")
    result = audit("walked", workspace=added(folder, workspace))

    assert failures(result) == {"hash": [[2000]]}
    assert "instead of aaaaaaaaaaaa…, which its publisher states" in detail(result, "hash")
    run = workspace.run("walked")
    names = [a.name for a in artifacts_of(workspace, run, workspace.checkpoint(run, 2000))]
    assert names == ["checkpoint 2000/config.json", "checkpoint 2000/model.safetensors"]


HUB_FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, list[list[int]]]]] = {
    "exchanged": (lambda folder: exchange(folder / "step2000", folder / "step7000"), {"continuity": [[2000, 7000]]}),
    "duplicated": (lambda folder: carry(folder, 2000, 7000), {"equal bytes": [[7000]]}),
    "truncated": (
        lambda folder: (folder / "step4000" / "model.safetensors").write_bytes(b"\0" * 100) and None,
        {"reads": [[4000]]},
    ),
}


@pytest.mark.parametrize("fault", HUB_FAULTS)
def test_faults_of_models_from_the_hub_are_named(fault: str, tmp_path: Path, workspace: Workspace) -> None:
    plant, expected = HUB_FAULTS[fault]
    folder = write_walked_run(tmp_path / "run", range(0, 10_000, 1000))
    plant(folder)

    assert failures(audit("walked", workspace=added(folder, workspace))) == expected


def test_another_runs_weights_among_models_from_the_hub(tmp_path: Path, workspace: Workspace) -> None:
    folder = write_walked_run(tmp_path / "run", range(0, 10_000, 1000))
    other = write_walked_run(tmp_path / "other", range(0, 10_000, 1000), seed=1)
    save_file(weights_of(other, 5000), folder / "step5000" / "model.safetensors")

    assert failures(audit("walked", workspace=added(folder, workspace))) == {"continuity": [[5000]]}


def test_equal_checkpoints_in_a_row_are_named_together(tmp_path: Path, workspace: Workspace) -> None:
    """Which of them is right cannot be told."""
    folder = write_walked_run(tmp_path / "run", range(0, 10_000, 1000))
    carry(folder, 4000, 5000)
    result = audit("walked", workspace=added(folder, workspace))

    assert failures(result) == {"equal bytes": [[4000, 5000]]}
    assert "with 1,000 steps of training between them at a learning rate that is not 0" in detail(result, "equal bytes")


def test_updates_that_were_skipped_leave_equal_checkpoints(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss scale that overflowed: the log says so, and the weights must be equal."""
    monkeypatch.setattr(neox, "SAVED", tuple(range(21)))
    with neox.one_thread():
        neox.write_run(neox.RUNS["skips"], tmp_path / "skips")
    add(tmp_path / "skips", workspace=workspace)
    result = audit("skips", deep=True, workspace=workspace)

    assert result.failed == []
    equal = [(r["result"], r["steps"]) for r in result.rows if r["check"] == "equal bytes"]
    assert equal == [
        ("expected", [0, 1, 2, 3]),
        ("expected", [8, 9]),
        ("expected", [15, 16, 17]),
        ("expected", [19, 20]),
    ]


def test_one_shard_that_is_anothers_is_named(tmp_path: Path, workspace: Workspace) -> None:
    """As pythia-12b's steps 50000 and 58000: the first shard is the final model's."""
    folder = write_walked_run(tmp_path / "run", range(0, 8000, 1000))
    for step in range(0, 8000, 1000):
        place = folder / f"step{step}"
        tensors = sorted(load_file(place / "model.safetensors").items())
        halves = {"model-00001-of-00002.safetensors": tensors[:9], "model-00002-of-00002.safetensors": tensors[9:]}
        for file, held in halves.items():
            save_file(dict(held), place / file)
        index = {name: file for file, held in halves.items() for name, _ in held}
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (place / "model.safetensors").unlink()
    shard = "model-00001-of-00002.safetensors"
    shutil.copy(folder / "step7000" / shard, folder / "step3000" / shard)
    result = audit("walked", workspace=added(folder, workspace))

    assert failures(result)["equal bytes"] == [[3000, 7000]]
    assert f"steps 3000 and 7000 hold the same bytes in {shard}" in detail(result, "equal bytes")


# --- tokenizer -------------------------------------------------------------------------------------------------------


def trained_on(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def forget_tokenizer(folder: Path) -> None:
    """Another one is refused where run.toml states its hash."""
    path = folder / "run.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "tokenizer_sha256" not in line))


def test_a_wrong_tokenizer_of_the_same_size_is_named(tiny_copy: Path, workspace: Workspace) -> None:
    from tests.conftest import FIXTURES

    prose = [path.read_text(errors="replace") for path in sorted(FIXTURES.rglob("*.md")) + [Path("README.md")]]
    wrong = trained_on([*prose, "the quick brown fox jumps over the lazy dog " * 50], 384)
    if (missing := 384 - wrong.get_vocab_size()) > 0:
        wrong.add_tokens([f"<extra {number}>" for number in range(missing)])
    add(tiny_copy, workspace=workspace)
    assert audit("tiny", workspace=workspace).failed == []
    wrong.save(str(tiny_copy / "tokenizer.json"))
    from data_index import text

    text._load_tokenizer.cache_clear()
    result = audit("tiny", workspace=workspace)

    assert set(failures(result)) == {"opens", "hash"}
    assert "is not the file that it was" in detail(result, "opens")

    forget_tokenizer(tiny_copy)
    add(tiny_copy, name="other", workspace=workspace)
    result = audit("other", workspace=workspace)

    assert set(failures(result)) == {"round trip"}
    assert "the data were made with another tokenizer" in detail(result, "round trip")


def test_vocabularies_must_hold_each_other(tiny_copy: Path, workspace: Workspace) -> None:
    trained_on(["a b c"], 300).save(str(tiny_copy / "tokenizer.json"))
    forget_tokenizer(tiny_copy)
    add(tiny_copy, workspace=workspace)
    result = audit("tiny", deep=True, workspace=workspace)

    assert "the data hold token id 383; the tokenizer has" in detail(result, "vocabulary")


@pytest.mark.parametrize(("largest", "results"), [(383, ["ok"]), (384, ["failed"])], ids=["the last id", "one more"])
def test_the_largest_token_must_be_one_of_the_models(
    largest: int, results: list[str], tmp_path: Path, workspace: Workspace
) -> None:
    folder = write_walked_run(tmp_path / "run", range(0, 3000, 1000))
    tokens = np.memmap(folder / "toy_text_document.bin", dtype=np.uint16, mode="r+")
    tokens[tokens > 380], tokens[len(tokens) // 2] = 0, largest
    tokens.flush()
    result = audit("walked", deep=True, workspace=added(folder, workspace))

    found = [r for r in result.rows if r["check"] == "largest id"]
    assert [r["result"] for r in found] == results
    assert f"token id {largest}" in found[0]["detail"]


def test_without_a_tokenizer_nothing_is_known(tmp_path: Path, workspace: Workspace) -> None:
    added(write_walked_run(tmp_path / "run", range(0, 3000, 1000)), workspace)
    rows = audit("walked", workspace=workspace).rows

    assert {r["check"]: r["result"] for r in rows if r["artifact"] == "tokenizer"} == {"round trip": "not known"}


# --- going on, planning ----------------------------------------------------------------------------------------------


def test_an_interrupted_audit_goes_on_where_it_stopped(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = soundness.read_checkpoint

    def interrupted(checkpoint: Any, **how: Any) -> Any:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(checkpoint.step)
        return real(checkpoint, **how)

    def counted(checkpoint: Any, **how: Any) -> Any:
        read.append(checkpoint.step)
        return real(checkpoint, **how)

    monkeypatch.setattr(soundness, "read_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit("tiny", deep=True, workspace=tiny)
    assert plan_audit("tiny", deep=True, workspace=tiny)["kept_checkpoints"] == 3
    monkeypatch.setattr(soundness, "read_checkpoint", counted)
    whole = audit("tiny", deep=True, workspace=tiny)
    assert read == [0, 5, 10, 15, 20]
    assert audit("tiny", workspace=tiny).failed == [] and read == [0, 5, 10, 15, 20]  # samples are kept
    again = audit("tiny", deep=True, workspace=tiny)  # a deep audit that was done reads everything anew
    assert read == [0, 5, 10, 15, 20] * 2
    changing = {"detail"}  # what was seen for the first time has been seen before
    assert [{k: v for k, v in r.items() if k not in changing} for r in whole.rows] == [
        {k: v for k, v in r.items() if k not in changing} for r in again.rows
    ]


def test_a_changed_file_is_read_again(tiny: Workspace, tiny_copy: Path) -> None:
    assert audit("tiny", workspace=tiny).failed == []
    shutil.copy(weights_file(tiny_copy, 5), weights_file(tiny_copy, 15))

    assert failures(audit("tiny", workspace=tiny)) == {"hash": [[15]], "equal bytes": [[5, 15]]}


def test_a_plan_reads_and_writes_nothing(tiny: Workspace) -> None:
    cost = answer(tiny, "audit", "tiny", "--deep", "--plan")

    assert (cost["checkpoints"], cost["kept_checkpoints"]) == (5, 0)
    assert cost["token_bytes"] > 0 and cost["read_bytes"] > cost["bytes"] / 4
    assert not (tiny.home("tiny") / "audit-work").exists() and not (tiny.folder / "findings").exists()


def test_hashes_and_rows_can_be_asked_in_sql(tiny: Workspace) -> None:
    audit("tiny", workspace=tiny)
    (count,) = answer(tiny, "sql", "select count(*) as n from audit where result = 'ok' and step = 10")
    hashes = answer(tiny, "sql", "select sha256 from file_hashes where step = 10")

    assert count["n"] >= 8 and len(hashes) == 3


# --- command line and picture ----------------------------------------------------------------------------------------


def test_the_verb_draws_and_exits_by_what_failed(tiny: Workspace, tiny_copy: Path, tmp_path: Path) -> None:
    done = forensics(tiny, "audit", "tiny")
    assert done.returncode == 0 and "checkpoint 10 (3 of 5)" in done.stderr
    kept = sorted(path.name for path in (tiny.folder / "findings").iterdir())
    assert kept == ["audit-tiny.html", "audit-tiny.json", "audit-tiny.png"]
    flip(weights_file(tiny_copy, 10))
    done = forensics(tiny, "audit", "tiny", "--format", "json", "-o", str(tmp_path / "picture.png"))

    assert done.returncode == 1 and "1 of " in done.stderr and "it was changed since" in done.stderr
    assert {"failed"} & {found["result"] for found in json.loads(done.stdout)}
    assert (tmp_path / "picture.png").exists() and (tmp_path / "picture.html").exists()


def test_what_cannot_be_asked_is_said(tiny: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UnknownRun):
        audit("none", workspace=tiny)
    with pytest.raises(MissingFile, match="holds no .json file of evaluations"):
        audit("tiny", evaluations=tmp_path / "nowhere", workspace=tiny)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(CorruptFile, match="no file holds evaluations"):
        audit("tiny", evaluations=tmp_path, workspace=tiny)


def many(count: int) -> tuple[list[int], list[dict[str, Any]], list[tuple[int, int, float]]]:
    steps = [1000 * number for number in range(count)]
    rows = [row("a", "reads", "ok", step=step) for step in steps]
    rows += [row("a", "reads", "failed", "why <it> failed", step=steps[-2]), row("b", "trust", "not known")]
    return steps, rows, [(one, other, 1e-3) for one, other in zip(steps, steps[1:], strict=False)]


@pytest.mark.parametrize("count", [3, 154, 1400])
def test_the_picture_loses_no_column(count: int, tmp_path: Path) -> None:
    """A dot of 3 by 3 at least for each cell, and both outputs from one description."""
    from matplotlib.image import imread

    figure = picture("many", *many(count))
    matrix = figure.panels[0]
    assert isinstance(matrix, Matrix)
    assert [len(cells) for cells in matrix.cells] == [count + 1] * len(matrix.rows)
    assert matrix.cells[matrix.rows.index("opens and reads")][count - 1] == "failed"
    write_figure(figure, tmp_path / "a.png")
    write_figure(figure, tmp_path / "a.html")
    drawn = imread(tmp_path / "a.png")
    orange = (abs(drawn[..., :3] - [213 / 255, 94 / 255, 0]) < 0.02).all(axis=-1)
    below_legend = orange[150:]
    assert below_legend.any(axis=0).sum() >= 3, "the failed checkpoint's column is seen"
    assert drawn.shape[1] > 3 * count
    page = (tmp_path / "a.html").read_text()
    assert "why &lt;it&gt; failed" in page.replace("\\u003c", "<").replace("\\u0026", "&")


def test_names_on_the_axis_do_not_run_into_each_other() -> None:
    figure = picture("many", *many(1400))
    shown = shown_names(figure, most=100)

    assert {0, 1400} <= set(shown) and len(shown) <= 170
    assert min(other - one for one, other in zip(shown, shown[1:], strict=False)) >= 8


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([0, 1000, 2000, 3000], (1000, [])),
        ([0, 1, 2, 4, 512, 1000, 2000, 3000, 4000, 5000, 6000], (1000, [])),
        ([115000, 116000, 117000, 330000, 331000], (1000, [(118000, 329000)])),
        ([0, 5, 10, 20, 25], (5, [(15, 15)])),
        ([0, 1, 9, 20], (None, [])),
        ([0, 10], (None, [])),
        ([], (None, [])),
    ],
)
def test_gaps_are_counted_on_the_runs_own_grid(steps: list[int], expected: Any) -> None:
    assert gaps_of(steps) == expected


def test_where_a_list_ends_before_its_run_is_said(core_shared: Workspace) -> None:
    run = core_shared.run("core")
    for steps, said in (
        ([0, 10, 20, 30], ("not known", "the run took 40 steps; the last checkpoint listed is 30")),
        ([0, 10, 20, 30, 40], ("ok", "the last step, 40, is there")),
    ):
        (final,) = [found for found in gap_rows(run, steps) if found["check"] == "final"]
        assert (final["result"], final["detail"]) == said


@pytest.mark.parametrize(
    ("resting", "result"),
    [((True, True), "expected"), ((True, False), "failed"), ((False, None), "failed")],
)
def test_files_that_are_equal_are_expected_only_if_no_step_between_moved(
    resting: tuple[bool | None, ...], result: str, tmp_path: Path
) -> None:
    """A hash that the publisher states tells it, where the weights themselves were not read."""
    steps = (0, 1, 2)
    artifacts = {
        step: [
            Artifact(
                name=f"checkpoint {step}/model.safetensors",
                step=step,
                place=tmp_path / str(step),
                num_bytes=10,
                sha256_stated="same",
                available=True,
                error=None,
                checked_at="2026-01-01",
            )
        ]
        for step in steps
    }
    hashes = {files[0].name: "same" for files in artifacts.values()}
    ((equal, whole, found),) = equal_file_rows(artifacts, hashes, [], lambda one, other: resting[one])

    assert (equal, whole, found["result"]) == (steps, True, result)
    assert list(equal_file_rows(artifacts, hashes, [steps], lambda one, other: True)) == []  # said already


# --- what a review found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["", "model_and_optim"])
def test_exchanged_folders_of_olmo_core_are_found(what: str, workspace: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "olmo-core", tmp_path / "core")) / "main"
    add(folder, workspace=workspace)
    exchange(folder / "ckpt" / "step10" / what, folder / "ckpt" / "step20" / what)

    found = failures(audit("main", workspace=workspace))

    assert found["optimizer step"] == [[10], [20]]
    assert ("step" in found) == (what == "")


def test_exchanged_optimizers_of_olmo_are_found(workspace: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "olmo", tmp_path / "olmo"))
    add(folder, workspace=workspace)
    exchange(*(folder / "run" / f"step{step}-unsharded" / "optim.pt" for step in (10, 20)))

    assert failures(audit("olmo", workspace=workspace))["optimizer step"] == [[10], [20]]


@pytest.mark.parametrize(
    ("counted", "results"),
    [
        ({10: 10, 20: 20}, ["ok", "ok"]),
        ({0: 1, 10: 11, 20: 21}, ["ok", "ok", "ok"]),
        ({10: 10, 20: 17, 30: 27}, ["ok", "not known", "ok"]),  # three steps skipped on the way
        ({10: 20, 20: 10, 30: 30}, ["failed", "failed", "ok"]),
        ({10: 11, 20: 11, 30: 31}, ["ok", "failed", "ok"]),
        ({10: 12}, ["failed"]),
    ],
)
def test_updates_that_an_optimizer_counts_are_held_against_steps(counted: dict[int, int], results: list[str]) -> None:
    assert [row["result"] for row in optimizer_step_rows(counted)] == results


def test_a_checkpoint_that_was_there_and_is_gone_is_named(tiny_copy: Path, workspace: Workspace) -> None:
    add(tiny_copy, workspace=workspace)
    assert audit("tiny", workspace=workspace).failed == []
    shutil.rmtree(tiny_copy / "checkpoints" / "step10")

    result = audit("tiny", workspace=workspace)

    assert failures(result) == {"available": [[10]]}
    assert "was there on 20" in detail(result, "available") and "is gone" in detail(result, "available")


def test_blocks_that_an_audit_read_first_are_known_the_next_time(tiny_copy: Path, workspace: Workspace) -> None:
    add(tiny_copy, workspace=workspace)
    home = workspace.home("tiny")
    current = json.loads((home / "current.json").read_text())
    (home / "current.json").write_text(json.dumps({k: v for k, v in current.items() if k != "block_hashes"}))

    first = [r["result"] for r in audit("tiny", deep=True, workspace=workspace).rows if r["check"] == "blocks"]
    second = [r["result"] for r in audit("tiny", deep=True, workspace=workspace).rows if r["check"] == "blocks"]
    assert set(first) == {"not known"} and set(second) == {"ok"}


def test_records_beside_the_run_are_held_against_what_was_first_seen(tiny_copy: Path, workspace: Workspace) -> None:
    add(tiny_copy, workspace=workspace)
    audit("tiny", workspace=workspace)
    path = tiny_copy / "documents.parquet"
    path.write_bytes(path.read_bytes() + b"x")

    assert [r["artifact"] for r in audit("tiny", workspace=workspace).failed] == ["documents.parquet"]


def test_a_parameter_that_became_zero_is_named(tiny_copy: Path, workspace: Workspace) -> None:
    path = weights_file(tiny_copy, 10)
    tensors = load_file(path)
    tensors["model.norm.weight"].zero_()
    save_file(tensors, path)
    add(tiny_copy, workspace=workspace)

    result = audit("tiny", workspace=workspace)

    assert [10] in failures(result)["elements"]
    assert "model.norm.weight is zero" in detail(result, "elements")


def test_other_number_formats_are_said(tiny_copy: Path, workspace: Workspace) -> None:
    path = weights_file(tiny_copy, 10)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    add(tiny_copy, workspace=workspace)

    rows = [r for r in audit("tiny", workspace=workspace).rows if r["check"] == "dtype"]

    assert [(r["step"], r["result"]) for r in rows] == [(10, "not known")] and "bfloat16" in rows[0]["detail"]


def test_a_workspace_that_cannot_be_written_says_so(
    tiny_copy: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tiny_copy, workspace=workspace)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)

    with pytest.raises(NotWritable, match="--workspace"):
        audit("tiny", workspace=workspace)
