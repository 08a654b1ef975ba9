"""`add` recognises a run, says how far its order is to be believed, and names what it cannot take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import MissingFile, RunExists, UnknownLayout, UnknownRun, UnsupportedRecipe
from data_index.registration import add
from data_index.workspace import Workspace


def assert_nothing_left(workspace: Workspace) -> None:
    """But for the lock file, which holds nothing."""
    assert workspace.run_names() == []
    assert [path.name for path in workspace.folder.glob("runs/*") if path.suffix != ".lock"] == []


def change_record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "batch":
            change(line)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def change_config(folder: Path, section: str, **fields: Any) -> None:
    for path in folder.glob("ckpt/step*/config.json"):
        config = json.loads(path.read_text())
        config[section] |= fields
        path.write_text(json.dumps(config))


# --- what is recognised ----------------------------------------------------------------------------------------------


def test_a_native_run_is_recognised_and_exact(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")

    assert run.layout == "native"
    assert run.trust.level == "exact"
    assert str(run.trust) == "exact (the trainer's record of instances and token ids, steps 1..20 (20 batches))"


def test_an_olmo_core_run_is_exact_as_far_as_its_record_goes(core_shared: Workspace) -> None:
    """A flipped token in what step 30 read would contradict nothing."""
    run = core_shared.run("core")

    assert (run.layout, run.sequence_length, run.num_instances, run.last_step) == ("olmo_core", 128, 213, 40)
    assert [c.step for c in core_shared.checkpoints(run)] == [0, 10, 20]
    record = "the trainer's record of instances and token ids, steps 1..25 (25 batches), which are exact"
    assert (run.trust.level, run.trust.proved) == ("derived", ((1, 25),))
    assert run.trust.witness.startswith(f"{record}; dataset fingerprint")
    assert run.trust.missing == "a record of the token ids that were consumed in the other steps"
    assert [run.trust.of_steps(*steps).level for steps in ((1, 25), (25, 25), (25, 26))] == [
        "exact",
        "exact",
        "derived",
    ]


def test_the_name_is_the_folders_unless_one_is_given(core_copy: Path, workspace: Workspace) -> None:
    assert add(core_copy, workspace=workspace).name == "main"
    assert add(core_copy, name="other", workspace=workspace).name == "other"
    assert workspace.run_names() == ["main", "other"]


def test_without_a_record_the_order_is_derived_and_the_missing_witness_is_named(
    core_copy: Path, workspace: Workspace
) -> None:
    (core_copy / "metrics.jsonl").rename(core_copy.parent / "elsewhere.jsonl")
    derived = add(core_copy, name="derived", workspace=workspace)
    proved = add(core_copy, name="proved", metrics=core_copy.parent / "elsewhere.jsonl", workspace=workspace)

    assert derived.trust.level == "derived"
    assert derived.trust.missing == "a record of the token ids that were consumed"
    assert "dataset fingerprint and loader state of every checkpoint, global indices of epoch 1" in str(derived.trust)
    assert proved.trust.of_steps(1, 25).level == "exact"


def test_a_record_of_instances_alone_does_not_prove_the_tokens(core_copy: Path, workspace: Workspace) -> None:
    change_record(core_copy, lambda line: line.pop("input_ids_i64_sha256"))

    run = add(core_copy, workspace=workspace)
    assert (run.trust.level, run.trust.missing) == ("derived", "a record of the token ids that were consumed")
    record = "the trainer's record of instances, steps 1..25 (25 batches)"
    assert run.trust.witness.startswith(f"{record}; dataset fingerprint")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_name_is_given_once(tiny_source: Path, tiny_shared: Workspace) -> None:
    with pytest.raises(RunExists, match="tiny is registered already: give this one another name with --name"):
        add(tiny_source, workspace=tiny_shared)


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden"])
def test_a_name_that_would_escape_is_refused(name: str, tiny_source: Path, workspace: Workspace) -> None:
    with pytest.raises(UnknownRun, match="cannot name a run"):
        add(tiny_source, name=name, workspace=workspace)
    assert_nothing_left(workspace)


def test_a_folder_of_no_known_layout_says_what_layouts_have(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(UnknownLayout, match=r"is in no layout that this version reads .native: run.toml;"):
        add(tmp_path, workspace=workspace)
    with pytest.raises(MissingFile, match="nowhere is not a folder"):
        add(tmp_path / "nowhere", workspace=workspace)
    with pytest.raises(UnknownLayout, match="unknown layout 'gpt'; this version reads native, olmo_core"):
        add(tmp_path, layout="gpt", workspace=workspace)


def test_data_that_are_not_found_are_asked_for_and_found(core_copy: Path, tmp_path: Path, workspace: Workspace) -> None:
    (core_copy.parent / "data").rename(tmp_path / "far-away")

    with pytest.raises(MissingFile, match=r"data/part-00-00000.npy of .* neither as written nor .* with --data DIR"):
        add(core_copy, workspace=workspace)
    assert_nothing_left(workspace)
    run = add(core_copy, data=tmp_path / "far-away", workspace=workspace)
    assert run.trust.of_steps(1, 25).level == "exact"
    assert {file.path.parent for file in run.files} == {tmp_path / "far-away"}


def test_a_native_run_names_its_own_data(tiny_source: Path, tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(UnknownLayout, match="--data is not for a native run"):
        add(tiny_source, data=tmp_path, workspace=workspace)


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        ("dataset", {"_CLASS_": "olmo_core.data.NumpyVSLDatasetConfig"}, "dataset NumpyVSLDatasetConfig has an order"),
        ("dataset", {"source_mixture_config": {"max_tokens": 1}}, "dataset.source_mixture_config is not read"),
    ],
)
def test_an_order_that_is_not_computed_is_named(
    section: str, fields: dict[str, Any], said: str, core_copy: Path, workspace: Workspace
) -> None:
    change_config(core_copy, section, **fields)

    with pytest.raises(UnsupportedRecipe, match=said):
        add(core_copy, workspace=workspace)
    assert_nothing_left(workspace)
