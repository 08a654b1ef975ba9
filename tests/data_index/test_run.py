"""Steps, ranges and names; run.toml and the workspace around it."""

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import (
    CorruptFile,
    InvalidRange,
    MissingCheckpoint,
    MissingFile,
    NewerWorkspace,
    StepOutOfRange,
    UnknownRun,
)
from data_index.run import Masking, Order, OrderTrust, Run, Segment, StoredPieces, TokenFile, parse_steps
from data_index.run_file import read_run, write_run
from data_index.workspace import Workspace, valid_name

# Two epochs of 24 positions: a batch ramp in the first, a remainder of four that is never read in the second.
SEGMENTS = (
    Segment(first_step=1, num_steps=3, epoch=1, first_position=0, instances_per_batch=4),
    Segment(first_step=4, num_steps=2, epoch=1, first_position=12, instances_per_batch=6, loss_denominator=100),
    Segment(first_step=6, num_steps=5, epoch=2, first_position=0, instances_per_batch=4),
)


def a_run(folder: Path) -> Run:
    """A run in two files, with a parent."""
    file = TokenFile(
        name="a", path=folder / "tokens" / "a.bin", dtype="uint16", num_bytes=384, first_instance=0, num_instances=24
    )
    return Run(
        name="ramp",
        layout="native",
        source=folder,
        sequence_length=8,
        files=(file, replace(file, name="b", path=Path("/elsewhere/b.bin"), first_instance=24, sha256="00ff")),
        order=Order(rule="file", parameters={"epoch_1": {"path": "order/epoch-1.npy", "sha256": "ab"}}),
        segments=SEGMENTS,
        trust=OrderTrust(level="derived", witness='the "rule"', missing="a record\nof tokens"),
        config_format="native",
        config={"model": {"rope": {"theta": 5e5}, "sizes": [1, 2.5, "x"]}, "flag": True},
        recipe_overrides={"learning_rate": 3e-4},
        tokenizer=folder / "tokenizer.json",
        tokenizer_sha256="7f" * 32,
        eos_token_id=0,
        heldout=(replace(file, name="held", sha256="11"),),
        parent=("older", 40),
        environment={"torch": "2.13", "num_threads": 1},
        facts={"tokens_before": "1000"},
    )


def test_steps_tile_the_order(tmp_path: Path) -> None:
    """Every position of an epoch is consumed once, in order, with no gap between steps."""
    run = a_run(tmp_path)
    taken: dict[int, list[int]] = {1: [], 2: []}
    for step in range(run.first_step, run.last_step + 1):
        segment = run.segment_of_step(step)
        taken[segment.epoch] += range(24)[segment.positions_of_step(step)]

    assert taken == {1: list(range(24)), 2: list(range(20))}


def test_tokens_add_up_over_segments(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    assert [run.tokens_after(step) - 1000 for step in (0, 1, 3, 4, 10)] == [0, 32, 96, 144, 352]


def test_a_step_is_from_the_checkpoint_before_it_to_its_own(tmp_path: Path) -> None:
    run = a_run(tmp_path)

    assert [parse_steps(text, run) for text in ("1", "10", "0:1", "3:7", "0:10")] == [
        (0, 1),
        (9, 10),
        (0, 1),
        (3, 7),
        (0, 10),
    ]


@pytest.mark.parametrize("text", ["", "x", "1.5", "3:", ":3", "1:2:3", "1-2", "0x3"])
def test_what_is_no_range_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRange, match=r"is neither a step \(137\) nor a range from checkpoint to checkpoint"):
        parse_steps(text, a_run(tmp_path))


@pytest.mark.parametrize("text", ["5:5", "7:3", "0:0"])
def test_an_empty_range_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRange, match=f"'{text}' holds no step: A:B means .* steps A.1 .. B"):
        parse_steps(text, a_run(tmp_path))


@pytest.mark.parametrize(("text", "wrong"), [("11", 11), ("9:11", 11), ("-1", -1), ("-2:3", -1)])
def test_steps_that_were_not_taken_are_named(text: str, wrong: int, tmp_path: Path) -> None:
    with pytest.raises(StepOutOfRange, match=f"ramp took steps 1..10, not {wrong}$"):
        parse_steps(text, a_run(tmp_path))


def test_asking_for_step_0_explains_where_counting_starts(tmp_path: Path) -> None:
    with pytest.raises(StepOutOfRange, match="checkpoint 0 is the initialization; the first step is 1"):
        parse_steps("0", a_run(tmp_path))


def test_run_toml_gives_the_run_back(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_run(run, tmp_path)

    assert read_run(tmp_path) == run


def every_field(folder: Path) -> Run:
    """Instances in pieces, then some cut from files that run on into one another, then lines; no field is left out."""
    base = a_run(folder)
    pieces = StoredPieces(path=folder / "pieces", num_instances=5, num_pieces=9, sha256="ab" * 32)
    first = replace(base.files[0], num_bytes=396, first_instance=5, num_instances=25, label_mask=folder / "mask.npy")
    second = replace(base.files[1], num_bytes=20, first_instance=30, num_instances=1, first_token=2)
    lines = replace(base.files[0], name="c", dtype="jsonl", first_instance=31, lines=folder / "lines" / "00002.npy")
    return replace(
        base,
        files=(first, second, lines),
        extra_label=True,
        pieces=pieces,
        masking=Masking(repetition=(13, 1, 32), filter_sees_padding=True, hidden_token_id=0),
        pad_token_id=0,
        segments=(*SEGMENTS[:2], replace(SEGMENTS[2], attempt=2, outcome="withheld")),
    )


def test_run_toml_keeps_every_field(tmp_path: Path) -> None:
    """A field that is added to a record has to be added above, and to run.toml."""
    run = every_field(tmp_path)
    assert run.masking != Masking()
    for kind, records in {Run: [run], TokenFile: run.files, Segment: run.segments, Masking: [run.masking]}.items():
        for field in fields(kind):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            assert any(getattr(record, field.name) != default for record in records), f"{kind.__name__}.{field.name}"
    write_run(run, tmp_path)

    assert read_run(tmp_path) == run


@pytest.mark.parametrize("hidden", [None, 0, 7])
@pytest.mark.parametrize("repetition", [None, (3, 1, 5)])
def test_a_run_that_hides_nothing_says_nothing_of_it(
    hidden: int | None, repetition: tuple[int, int, int] | None, tmp_path: Path
) -> None:
    run = replace(a_run(tmp_path), masking=Masking(hidden_token_id=hidden, repetition=repetition))
    write_run(run, tmp_path)

    assert ("[masking]" in (tmp_path / "run.toml").read_text()) == (run.masking != Masking())
    assert read_run(tmp_path).masking == run.masking


IMPOSSIBLE: dict[str, tuple[Callable[[Run], Any], str]] = {
    "a lead that no file before left": (
        lambda run: {"files": (replace(run.files[0], first_token=1), *run.files[1:])},
        "the instances of a: they do not follow the file before, or do not fit",
    ),
    "a lead that is too short": (
        lambda run: {"files": (run.files[0], replace(run.files[1], first_token=1), run.files[2])},
        "the instances of b",
    ),
    "a last instance without an end": (lambda run: {"files": run.files[:1]}, "the last instance of a: it runs past"),
    "cut instances that overlap those in pieces": (
        lambda run: {"pieces": replace(run.pieces, num_instances=6)},
        "the instances of a",
    ),
    "two files of one name": (
        lambda run: {"files": (run.files[0], replace(run.files[1], name="a"), run.files[2])},
        "the file name a: there are two of it",
    ),
    "an outcome that is none": (
        lambda run: {"segments": (replace(run.segments[0], outcome="lost"), *run.segments[1:])},
        "outcome = 'lost'",
    ),
    "a row of a label alone": (lambda run: {"sequence_length": 1}, "sequence_length .1."),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_run_can_be_is_not_read(what: str, tmp_path: Path) -> None:
    change, said = IMPOSSIBLE[what]
    run = every_field(tmp_path)
    write_run(replace(run, **change(run)), tmp_path)

    with pytest.raises(CorruptFile, match=said):
        read_run(tmp_path)


def test_a_file_may_lie_wholly_inside_one_instance(tmp_path: Path) -> None:
    """Tokens 0..7 of a row over four files, one of them empty."""
    run = a_run(tmp_path)
    sizes = [3, 1, 0, 4]
    files = tuple(
        replace(
            run.files[0],
            name=str(number),
            num_bytes=2 * size,
            first_instance=0 if number == 0 else 1,
            num_instances=int(number == 0),
            first_token=0 if number == 0 else size,
        )
        for number, size in enumerate(sizes)
    )
    write_run(replace(run, files=files), tmp_path)

    assert read_run(tmp_path).num_instances == 1


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    write_run(a_run(tmp_path / "old"), tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")

    assert read_run(tmp_path / "new") == a_run(tmp_path / "new")


def test_a_null_in_a_config_is_an_absent_key(tmp_path: Path) -> None:
    """TOML has no null."""
    write_run(replace(a_run(tmp_path), config={"a": None, "b": [{"c": None, "d": 1}]}), tmp_path)

    assert read_run(tmp_path).config == {"b": [{"d": 1}]}


def test_a_newer_run_toml_says_update(tmp_path: Path) -> None:
    write_run(a_run(tmp_path), tmp_path)
    change(tmp_path, "version = 1", "version = 2")

    with pytest.raises(NewerWorkspace, match="run.toml is version 2, this toolkit reads up to 1: update it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "ramp"', "name = ramp", "is not TOML"),
        ('format = "forensics-run"', 'format = "other"', 'does not say format = "forensics-run"'),
        ('layout = "native"', "", "lacks or misstates 'layout'"),
        ("[trust]", "[thrust]", "lacks or misstates 'trust'"),
        ("num_steps = 3", "num_stops = 3", "num_stops"),
        ("sequence_length = 8", 'sequence_length = "eight"', "eight"),
        ("[order]", "[[order]]", "lacks or misstates"),
    ],
)
def test_a_damaged_run_toml_is_corrupt(old: str, new: str, said: str, tmp_path: Path) -> None:
    write_run(a_run(tmp_path), tmp_path)
    change(tmp_path, old, new)

    with pytest.raises(CorruptFile, match=said):
        read_run(tmp_path)


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "run.toml").read_text()
    assert old in text
    (folder / "run.toml").write_text(text.replace(old, new))


def test_a_run_toml_that_is_no_text_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(CorruptFile, match="is not TOML"):
        read_run(tmp_path)


def test_no_run_toml_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="run.toml is not there"):
        read_run(tmp_path)


def test_a_newer_workspace_says_update(workspace: Workspace) -> None:
    workspace.create()
    (workspace.folder / "workspace.json").write_text('{"version": 2}')

    with pytest.raises(NewerWorkspace, match="is a workspace of version 2, this toolkit knows 1: update the toolkit"):
        Workspace(workspace.folder)


@pytest.mark.parametrize("content", ["{}", '{"version": "1"}', "not json", ""])
def test_a_damaged_workspace_marker_is_corrupt(content: str, workspace: Workspace) -> None:
    workspace.create()
    (workspace.folder / "workspace.json").write_text(content)

    with pytest.raises(CorruptFile, match="workspace.json"):
        Workspace(workspace.folder)


def test_an_unknown_run_names_the_nearest(workspace: Workspace) -> None:
    for name in ("pythia-160m", "pythia-410m", "amber"):
        write_run(replace(a_run(workspace.folder), name=name), workspace.folder / "runs" / name)

    with pytest.raises(UnknownRun, match=r"'pythia-160' in .*; there are: pythia-160m, pythia-410m \(list all"):
        workspace.run("pythia-160")
    with pytest.raises(UnknownRun, match="there are: amber, pythia-160m, pythia-410m "):
        workspace.run("zzz")


def test_an_empty_workspace_says_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(UnknownRun, match="there is none yet: forensics demo makes one, add SOURCE"):
        workspace.run("demo")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", ".hidden", "-x", "a b", "a\n", "a\\b", "a'b", "x" * 101]
)
def test_names_that_would_escape_are_refused(name: str, workspace: Workspace) -> None:
    with pytest.raises(UnknownRun, match="cannot name a run"):
        valid_name(name)
    with pytest.raises(UnknownRun, match="cannot name a run"):
        workspace.home(name)


def test_a_missing_checkpoint_names_its_neighbours(tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")

    assert [c.step for c in tiny_shared.checkpoints(run)] == [0, 5, 10, 15, 20]
    with pytest.raises(MissingCheckpoint, match="tiny has no checkpoint at step 7; the nearest are 5 and 10"):
        tiny_shared.checkpoint(run, 7)
    with pytest.raises(MissingCheckpoint, match="the nearest is 20 "):
        tiny_shared.checkpoint(run, 21)
