"""Which steps an OLMo-core run takes, held against a trainer in a few lines that goes batch by batch.

It follows train/trainer.py (fit, _fit_epoch, _iter_batches), train/callbacks/batch_size_scheduler.py and
data/data_loader.py of the Python package ai2-olmo-core 3.0.0.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from data_index.batch_queries import plan_of
from data_index.durations import Duration, olmo_core_duration
from data_index.errors import CorruptFile, OrderMismatch, UnsupportedRecipe
from data_index.orders.olmo_core_fingerprint import dataset_fingerprint, fsl_fields
from data_index.pickles import read_torch_archive
from data_index.registration import add
from data_index.run import Segment
from data_index.sources.olmo_core_steps import BatchSizes, Walk, skip_steps, walk_of
from data_index.workspace import Workspace
from forensics.lookup import batches

CORE = Path(__file__).parents[1] / "fixtures" / "olmo-core"
LENGTH = 16
Reading = tuple[int, int, int]  # epoch, first position, rows


class Trainer:
    """One batch a step; sizes in rows."""

    def __init__(self, num_positions: int, rows: int, schedule: list[tuple[int, int]], unit: str) -> None:
        self.num_positions, self.rows, self.schedule, self.unit = num_positions, rows, schedule, unit
        self.step, self.tokens, self.epoch, self.batches_processed = 0, 0, 1, 0
        self.rate_changes: list[tuple[int, float]] = []

    def reached(self, value: int, unit: str) -> bool:
        if unit == "epochs":
            return self.epoch > value
        return (self.step if unit == "steps" else self.tokens) >= value

    def before_loading(self) -> None:
        for value, rows in reversed(self.schedule):
            if self.reached(value, self.unit):
                if rows > self.rows and self.batches_processed % (rows // self.rows) == 0:
                    self.change(rows, self.batches_processed // (rows // self.rows))
                elif rows < self.rows:
                    self.change(rows, self.batches_processed * (self.rows // rows))
                break

    def change(self, rows: int, batches_processed: int) -> None:
        self.rate_changes.append((self.step + 1, math.sqrt(rows / self.rows)))
        self.rows, self.batches_processed = rows, batches_processed

    def run(self, stops: list[tuple[int, str]]) -> Iterator[Reading]:
        while not any(self.reached(*stop) for stop in stops):
            while True:
                self.before_loading()
                if self.batches_processed >= self.num_positions // self.rows:
                    break
                yield self.epoch, self.batches_processed * self.rows, self.rows
                self.batches_processed += 1
                self.step, self.tokens = self.step + 1, self.tokens + self.rows * LENGTH
                if any(self.reached(*stop) for stop in stops):
                    return
            self.epoch, self.batches_processed = self.epoch + 1, 0


def readings_of(segments: list[Segment]) -> list[Reading]:
    assert [s.first_step for s in segments] == [
        1 + sum(p.num_steps for p in segments[:n]) for n in range(len(segments))
    ]
    return [
        (s.epoch, s.positions_of_step(step).start, s.instances_per_batch)
        for s in segments
        for step in range(s.first_step, s.last_step + 1)
    ]


def walked(
    num_positions: int,
    rows: int,
    stops: list[tuple[int, str]],
    schedule: list[tuple[int, int]] | None = None,
    unit: str = "steps",
) -> Walk:
    schedule = schedule or []
    walk = Walk(
        num_positions=num_positions,
        sequence_length=LENGTH,
        batch_tokens=rows * LENGTH,
        sizes=BatchSizes(
            tokens=tuple(size * LENGTH for _, size in schedule),
            due=tuple(Duration(value=value, unit=unit) for value, _ in schedule),
        ),
    )
    walk.go([Duration(value=value, unit=stop_unit) for value, stop_unit in stops])
    return walk


# --- the walk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_random_schedules_are_walked_as_the_trainer_does(seed: int) -> None:
    """Sizes that double, quadruple and halve at steps, tokens and epochs; ends in all three units."""
    chance = random.Random(seed)
    num_positions, rows = chance.randrange(70, 200), 4
    unit = chance.choice(["steps", "tokens", "epochs"])
    scale = {"steps": 9, "tokens": 9 * 4 * LENGTH, "epochs": 1}[unit]
    sizes, schedule = rows, [(0, rows)]
    for number in range(1, chance.randrange(1, 5)):
        sizes = chance.choice([size for size in (sizes * 2, sizes * 4, sizes // 2) if 2 <= size <= 32])
        schedule.append((number * scale + (chance.randrange(5) if unit != "epochs" else 0), sizes))
    stops = [(chance.randrange(1, 5), "epochs")]
    stops += chance.choice([[], [(chance.randrange(1, 90), "steps")], [(chance.randrange(1, 9000), "tokens")]])
    trainer = Trainer(num_positions, rows, schedule, unit)

    walk = walked(num_positions, rows, stops, schedule, unit)

    assert readings_of(walk.segments) == list(trainer.run(stops))
    taken = walk.segments[-1].last_step
    assert [c for c in walk.base_rate_changes if c[0] <= taken] == [c for c in trainer.rate_changes if c[0] <= taken]
    assert (walk.steps, walk.tokens) == (trainer.step, trainer.tokens)


def test_an_increase_waits_for_whole_larger_batches() -> None:
    """Due after 3 batches of 4 rows; batches of 8 can begin after the 4th only."""
    walk = walked(100, 4, [(6, "steps")], [(0, 4), (3, 8)])

    assert readings_of(walk.segments) == [(1, 0, 4), (1, 4, 4), (1, 8, 4), (1, 12, 4), (1, 16, 8), (1, 24, 8)]
    assert walk.base_rate_changes == [(5, math.sqrt(2))]


def test_a_decrease_at_an_epochs_end_still_finds_a_batch_there() -> None:
    """Two batches of 8 in 21 positions leave one of 4."""
    walk = walked(21, 8, [(4, "steps")], [(0, 8), (2, 4)])

    assert readings_of(walk.segments) == [(1, 0, 8), (1, 8, 8), (1, 16, 4), (2, 0, 4)]


@pytest.mark.parametrize("step", range(0, 40))
def test_walking_on_from_any_step_equals_never_stopping(step: int) -> None:
    """From a loader state: steps, tokens, epoch and position, with the batch size of that time."""
    schedule, stops = [(0, 4), (7, 8), (20, 4)], [(40, "steps")]
    whole = walked(50, 4, stops, schedule)
    readings = readings_of(whole.segments)
    there = (
        walked(50, 4, [(step, "steps")], schedule)
        if step
        else Walk(num_positions=50, sequence_length=16, batch_tokens=64)
    )
    resumed = Walk(
        num_positions=50,
        sequence_length=LENGTH,
        batch_tokens=there.batch_tokens,
        sizes=whole.sizes,
        steps=there.steps,
        tokens=there.tokens,
        epoch=there.epoch,
        position=there.position,
    )
    resumed.go([Duration(value=40, unit="steps")])

    found = [
        (s.epoch, s.positions_of_step(n).start, s.instances_per_batch)
        for s in resumed.segments
        for n in range(s.first_step, s.last_step + 1)
    ]
    assert found == readings[step:]


@pytest.mark.parametrize(
    ("trainer", "last"),
    [
        ({"max_duration": {"value": 2, "unit": "epochs"}}, 24),
        ({"max_duration": {"value": 30, "unit": "steps"}}, 30),
        ({"max_duration": {"value": 65 * LENGTH, "unit": "tokens"}}, 9),  # the batch that crosses it is taken
        ({"max_duration": {"value": 2, "unit": "epochs"}, "hard_stop": {"value": 5, "unit": "steps"}}, 5),
        ({"max_duration": {"value": 5, "unit": "steps"}, "hard_stop": {"value": 9, "unit": "epochs"}}, 5),
        ({"max_duration": {"value": 2, "unit": "epochs"}, "hard_stop": None}, 24),
        ({}, 12),
    ],
)
def test_a_run_ends_at_the_first_of_its_durations(trainer: dict[str, Any], last: int) -> None:
    """100 positions, batches of 8: 12 an epoch."""
    config = {"trainer": trainer, "data_loader": {"global_batch_size": 8 * LENGTH}}

    assert walk_of(config, 100, LENGTH).segments[-1].last_step == last


def test_a_schedule_is_found_by_its_class_and_can_be_switched_off() -> None:
    scheduler = {
        "_CLASS_": "olmo_core.train.callbacks.BatchSizeSchedulerCallback",
        "batch_sizes": [4 * LENGTH, 8 * LENGTH],
        "schedule": [{"value": 0, "unit": "steps"}, {"value": 2, "unit": "steps"}],
    }

    def rows(**fields: Any) -> list[int]:
        trainer = {"max_duration": {"value": 3, "unit": "steps"}, "callbacks": {"x": scheduler | fields, "other": None}}
        config = {"trainer": trainer, "data_loader": {"global_batch_size": 4 * LENGTH}}
        return [rows for _, _, rows in readings_of(walk_of(config, 100, LENGTH).segments)]

    assert rows() == [4, 4, 8]
    assert rows(enabled=False) == [4, 4, 4]


def test_what_cannot_be_walked_is_refused() -> None:
    with pytest.raises(OrderMismatch, match="3 instances do not fill one batch of 8"):
        walked(3, 8, [(1, "steps")])
    with pytest.raises(CorruptFile, match="trainer.max_duration is in 'hours', which is neither steps, tokens nor ep"):
        olmo_core_duration({"value": 1, "unit": "hours"}, "trainer.max_duration")


# --- skipped steps ---------------------------------------------------------------------------------------------------


def test_skipped_steps_are_cut_out_of_their_segments() -> None:
    """The first is skipped, the last is not; across a segment's border too."""
    walk = walked(100, 8, [(20, "steps")])
    ranges = [{"start": 3, "stop": 5}, {"start": 11, "stop": 14}, {"start": 20, "stop": 99}, {"start": 40, "stop": 50}]

    segments = skip_steps(walk.segments, ranges)

    skipped = [n for s in segments if s.outcome == "skipped" for n in range(s.first_step, s.last_step + 1)]
    assert skipped == [3, 4, 11, 12, 13, 20]
    assert readings_of(list(segments)) == readings_of(walk.segments)


def fsl(**fields: Any) -> dict[str, Any]:
    return {
        "_CLASS_": "olmo_core.data.NumpyFSLDatasetConfig",
        "paths": [f"data/part-0{number}-00000.npy" for number in range(3)],
        "sequence_length": 128,
        "tokenizer": {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1},
    } | fields


def test_a_skipped_step_keeps_its_batch_and_says_so(
    write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    skipping = {"steps_to_skip": [{"start": 5, "stop": 7}]}
    for name, trainer in (("plain", {}), ("skips", skipping)):
        add(write_core(tmp_path / name, fsl(), trainer=trainer), data=CORE, workspace=workspace)
    run = workspace.run("skips")

    plan = plan_of(workspace, run, 0, 10)
    assert [s for s in plan.steps if plan[s].outcome == "skipped"] == [5, 6]
    pairs = zip(batches("plain", 0, 10, workspace=workspace), batches("skips", 0, 10, workspace=workspace), strict=True)
    for one, other in pairs:
        assert one.instances.tolist() == other.instances.tolist()
        assert other.outcome == ("skipped" if other.step in (5, 6) else "applied")
    assert run.tokens_after(10) == 10 * 1024


# --- loader states ---------------------------------------------------------------------------------------------------


def change_state(folder: Path, step: int, **loader: Any) -> None:
    path = folder / "ckpt" / f"step{step}" / "train" / "rank0.pt"
    state = read_torch_archive(path).value
    keep = {key: state[key] for key in ("global_step", "epoch", "world_size", "max_steps")}
    torch.save(keep | {"data_loader": dict(state["data_loader"]) | loader}, path)


@pytest.mark.parametrize(
    "loader",
    [
        {"tokens_processed": 9 * 1024, "batches_processed": 9},
        {"tokens_processed": None, "batches_processed": 9},
        {"epoch": 2},
        {"tokens_processed": 0},
    ],
)
def test_a_loader_that_stood_elsewhere_is_a_mismatch(
    loader: dict[str, Any], core_copy: Path, workspace: Workspace
) -> None:
    change_state(core_copy, 10, **loader)

    said = r"step10: at step 10 the loader stood at instance .* by the config step 10 ends at instance 80 of epoch 1"
    with pytest.raises(OrderMismatch, match=said):
        add(core_copy, workspace=workspace)


def test_a_loader_that_counts_batches_alone_is_understood(core_copy: Path, workspace: Workspace) -> None:
    change_state(core_copy, 10, tokens_processed=None)

    assert add(core_copy, workspace=workspace).trust.proved == ((1, 25),)


# --- what a composed order cannot be ---------------------------------------------------------------------------------


def composed(paths: list[list[str]], **document: Any) -> list[dict[str, Any]]:
    tokenizer = {"vocab_size": 384, "eos_token_id": 0, "pad_token_id": 1}
    inner = {"_CLASS_": "x.NumpyDocumentSourceConfig", "dtype": "uint16", "tokenizer": tokenizer} | document
    outer = {"_CLASS_": "x.ConcatAndChunkInstanceSourceConfig", "sequence_length": 128}
    return [outer | {"sources": [inner | {"source_paths": some}]} for some in paths]


PARTS = [f"data/part-0{number}-00000.npy" for number in range(3)]
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "documents that are cut": (composed([PARTS], max_document_length=64), {}, "max_document_length cuts documents"),
    "epochs of several lengths": (
        composed([[p] for p in PARTS]),
        {"sources_per_epoch": 1},
        r"sources_per_epoch 1 makes epochs of \[49, 77, 87\] instances",
    ),
    "another instance source": ([{"_CLASS_": "x.MixingInstanceSourceConfig"}], {}, "source MixingInstanceSourceConfig"),
    "an unknown dataset": (fsl(_CLASS_="x.NumpyVSLDatasetConfig"), {}, "dataset NumpyVSLDatasetConfig has an order"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_orders_that_are_not_computed_are_refused_by_name(
    what: str, write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    dataset, loader, said = REFUSED[what]

    with pytest.raises(UnsupportedRecipe, match=said):
        add(write_core(tmp_path / "run", dataset, loader=loader), data=CORE, workspace=workspace)


def test_sources_take_turns_where_epochs_are_equally_long(
    write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    """Epoch 2 reads the second source: the same file again under a name of its own, its instances counted on."""
    dataset = composed([PARTS[:1], PARTS[:1]])

    run = add(write_core(tmp_path / "run", dataset, loader={"sources_per_epoch": 1}), data=CORE, workspace=workspace)

    assert [file.name for file in run.files] == [PARTS[0], f"{PARTS[0]}#2"]
    assert (run.num_instances, run.last_step) == (174, 20)
    served = list(batches("run", 0, 20, workspace=workspace))
    assert all((one.instances < 87).all() for one in served[:10])
    assert all((one.instances >= 87).all() for one in served[10:])


def test_all_files_of_a_source_run_into_one_another_where_told(
    write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    sizes = [(CORE / part).stat().st_size // 2 for part in PARTS]

    run = add(write_core(tmp_path / "run", composed([PARTS], source_group_size=-1)), data=CORE, workspace=workspace)

    assert run.num_instances == sum(sizes) // 128 > sum(size // 128 for size in sizes)


def test_label_masks_follow_their_files_through_the_permutation(
    write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    """Each file's mask hides the token ids that the file is told apart by."""
    masks = []
    for number, part in enumerate(PARTS):
        num_tokens = (CORE / part).stat().st_size // 2
        mask = torch.arange(num_tokens) % (number + 2) == 0
        (tmp_path / f"mask-{number}.npy").write_bytes(mask.numpy().tobytes())
        masks.append(str(tmp_path / f"mask-{number}.npy"))
    (tmp_path / "data").symlink_to(CORE / "data")
    dataset = fsl(dtype="uint16", source_permutation_seed=123, label_mask_paths=masks)

    run = add(write_core(tmp_path / "run", dataset), data=tmp_path, workspace=workspace)

    pairs = [(file.name[-11:-10], str(file.label_mask)[-5:-4]) for file in run.files]
    assert sorted(pairs) == [("0", "0"), ("1", "1"), ("2", "2")] != pairs
    for one in batches("run", 0, 3, workspace=workspace):
        for instance, counts in zip(one.instances.tolist(), one.counts_as_target, strict=True):
            file = next(f for f in reversed(run.files) if f.first_instance <= instance)
            first = (instance - file.first_instance) * 128
            stride = int(file.name[-11]) + 2
            assert counts.tolist() == [place % stride == 0 for place in range(first, first + 128)]


@pytest.mark.parametrize("kind", ["Padded", "Packed"])
def test_the_filter_sees_padding_in_packed_rows_only(
    kind: str, write_core: Callable[..., Path], tmp_path: Path, workspace: Workspace
) -> None:
    """20 tokens of padding are a repetition to it there."""
    chosen = {"repetition_max_period": 1, "repetition_min_period": 1, "repetition_max_count": 20}
    dataset = fsl(_CLASS_=f"x.Numpy{kind}FSLDatasetConfig", dtype="uint16", instance_filter_config=chosen)

    run = add(write_core(tmp_path / "run", dataset | {"sequence_length": 256}), data=CORE, workspace=workspace)

    only_for_padding = 0
    for one in batches("run", 0, run.last_step, workspace=workspace):
        for row, filtered in zip(one.token_ids.tolist(), one.filtered.tolist(), strict=True):
            runs = {token: max(len(list(same)) for t, same in groupby(row) if t == token) for token in set(row)}
            padding = runs.pop(1, 0) >= 20
            repeats = max(runs.values()) >= 20
            only_for_padding += padding and not repeats
            assert filtered == (repeats or (padding and kind == "Packed"))
    assert only_for_padding


def test_a_file_with_a_number_sign_in_its_name_has_its_own_fingerprint(core_copy: Path, workspace: Workspace) -> None:
    """`#2` is what the toolkit adds to a file that is listed again, and no more than that is taken off."""
    data = core_copy.parent / "data"
    (data / "part-00-00000.npy").rename(data / "c#.npy")
    for listing in core_copy.glob("ckpt/step*/data_paths.txt"):
        listing.write_text(listing.read_text().replace("part-00-00000.npy", "c#.npy"))

    with pytest.raises(OrderMismatch) as caught:
        add(core_copy, workspace=workspace)
    config = json.loads((core_copy / "ckpt" / "step0" / "config.json").read_text())["dataset"]
    names = [data / "c#.npy", data / "part-01-00000.npy", data / "part-02-00000.npy"]
    fields = fsl_fields(config["tokenizer"], "uint16", config.get("max_target_sequence_length"))
    expected = dataset_fingerprint("NumpyFSLDataset", fields, [(str(p), p.stat().st_size) for p in names])
    assert f"the files at hand give {expected[:12]}" in str(caught.value)
