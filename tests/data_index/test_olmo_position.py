"""From checkpoints to what every step of a legacy OLMo run read: restarts, skipped batches, epochs, other batch sizes.

Held against a trainer in a few lines, which reads one batch a step as the real one does
(olmo/train.py, Trainer.load_trainer_state_dict and fit, Python package ai2-olmo 0.6.0).
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.durations import Progress, max_steps, olmo_duration
from data_index.errors import CorruptFile, MissingFile, OrderMismatch, UnsupportedRecipe
from data_index.registration import add
from data_index.run import Segment
from data_index.sources.olmo_position import Position, Stretch, join_stretches
from data_index.store import connect
from data_index.workspace import Workspace
from forensics.lookup import batches, where

OLMO = Path(__file__).parents[1] / "fixtures" / "olmo"
POSITIONS = 250
Reading = tuple[int, int, int]  # epoch, first position, rows


@dataclass
class Trainer:
    """Processes that follow one another in one save folder."""

    saved: dict[int, Stretch] = field(default_factory=dict)
    readings: dict[int, list[Reading]] = field(default_factory=dict)

    def process(
        self, until: int, *, load: int | None = None, epoch: int | None = None, skip: int = 0, rows: int = 8, every: int
    ) -> None:
        step, place = 0, Position(epoch=epoch or 1, examples=0)
        if load is not None:
            loaded = self.saved[load].position
            assert loaded is not None
            step, place = load, loaded if epoch in (None, loaded.epoch) else Position(epoch=epoch, examples=0)
            place = replace(place, examples=place.examples + skip * rows)
        while step < until:
            if POSITIONS - place.examples < rows:
                place = Position(epoch=place.epoch + 1, examples=0)
            self.readings.setdefault(step + 1, []).append((place.epoch, place.examples, rows))
            step, place = step + 1, replace(place, examples=place.examples + rows)
            if step % every == 0 or step == until:
                self.saved[step] = Stretch(
                    last_step=step,
                    position=place,
                    instances_per_batch=rows,
                    first_epoch=epoch or 1,
                    told_epoch=epoch,
                    restarted_from=load,
                    skipped_batches=skip,
                )

    def stretches(self) -> list[Stretch]:
        return [self.saved[step] for step in sorted(self.saved)]

    def kept(self) -> list[Reading]:
        return [self.readings[step][-1] for step in sorted(self.readings)]


def reading_of(segments: tuple[Segment, ...], step: int) -> Reading:
    """What the last attempt at a step read."""
    segment = max((s for s in segments if s.first_step <= step <= s.last_step), key=lambda s: s.attempt)
    return segment.epoch, segment.positions_of_step(step).start, segment.instances_per_batch


def readings_of(segments: tuple[Segment, ...]) -> list[Reading]:
    last = max(segment.last_step for segment in segments)
    return [reading_of(segments, step) for step in range(1, last + 1)]


def joined(trainer: Trainer, last_step: int) -> tuple[tuple[Segment, ...], list[str]]:
    return join_stretches(trainer.stretches(), POSITIONS, last_step)


def attempts_of(segments: tuple[Segment, ...]) -> list[tuple[int, int, int]]:
    return [(segment.first_step, segment.last_step, segment.attempt) for segment in segments]


# --- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_every_kept_step_is_found_again_after_random_restarts(seed: int) -> None:
    """Also where some checkpoints published no trainer state, as long as configs say what happened."""
    chance, trainer = random.Random(seed), Trainer()
    until = 0
    for _ in range(chance.randrange(1, 5)):
        load = chance.choice(sorted(trainer.saved)) if trainer.saved else None
        epoch = chance.choice([None, None, 1, 2]) if load is not None else None
        skip = chance.choice([0, 0, 3]) if load is not None else 0
        until = max(until, load or 0) + chance.randrange(4, 60)
        # What an earlier process saved after `load` is gone, as where the trainer clears its folder.
        trainer.saved = {step: s for step, s in trainer.saved.items() if load is None or step <= load}
        trainer.process(until, load=load, epoch=epoch, skip=skip, rows=chance.choice([8, 8, 4]), every=7)
    stretches = trainer.stretches()
    hidden = [replace(s, position=None) if chance.random() < 0.3 and s is not stretches[-1] else s for s in stretches]

    segments, notes = join_stretches(hidden, POSITIONS, until)

    assert readings_of(segments) == trainer.kept()
    assert notes == []


@pytest.mark.parametrize("step", range(1, 71))
def test_resuming_at_any_step_reads_what_never_stopping_does(step: int) -> None:
    """From the loader's position in one checkpoint alone, over epoch borders too (31 batches an epoch)."""
    straight, resumed = Trainer(), Trainer()
    straight.process(75, every=75)
    resumed.process(step, every=step)
    resumed.process(75, load=step, every=75)

    assert resumed.kept() == straight.kept()
    segments, notes = join_stretches([resumed.saved[step]], POSITIONS, 75)
    assert (readings_of(segments), notes) == (straight.kept(), [])
    assert len(segments) == 3


def test_steps_that_were_taken_again_are_attempts() -> None:
    """Only those: what the second process took for the first time is its first attempt."""
    trainer = Trainer()
    trainer.process(20, every=10)
    trainer.process(27, load=10, skip=2, every=27)

    segments, notes = joined(trainer, 40)

    assert attempts_of(segments) == [(1, 20, 1), (11, 20, 2), (21, 29, 1), (30, 40, 1)]
    assert readings_of(segments)[10:12] == [(1, 96, 8), (1, 104, 8)]
    assert notes == []


def test_a_third_restart_counts_on() -> None:
    trainer = Trainer()
    trainer.process(12, every=4)
    trainer.process(14, load=8, skip=1, every=14)
    trainer.process(15, load=8, skip=2, every=15)

    segments, _ = joined(trainer, 15)

    assert {step: sum(s.first_step <= step <= s.last_step for s in segments) for step in (8, 9, 12, 13, 14, 15)} == {
        step: len(trainer.readings[step]) for step in (8, 9, 12, 13, 14, 15)
    }
    assert readings_of(segments) == trainer.kept()


def test_a_process_that_saves_often_was_not_restarted_each_time() -> None:
    """Each of its checkpoints names the one that it had loaded."""
    trainer = Trainer()
    trainer.process(10, every=10)
    trainer.process(40, load=10, every=5)

    segments, notes = joined(trainer, 40)

    assert attempts_of(segments) == [(1, 31, 1), (32, 40, 1)]
    assert notes == []


def test_many_checkpoints_of_a_sound_run_are_one_segment_an_epoch() -> None:
    trainer = Trainer()
    trainer.process(60, every=1)

    assert attempts_of(joined(trainer, 62)[0]) == [(1, 31, 1), (32, 62, 1)]


# --- other jumps -----------------------------------------------------------------------------------------------------


def test_a_batch_size_that_changed_begins_a_segment() -> None:
    trainer = Trainer()
    trainer.process(10, every=10)
    trainer.process(20, load=10, rows=16, every=20)

    segments, _ = joined(trainer, 22)

    assert [(s.first_step, s.first_position, s.instances_per_batch, s.epoch) for s in segments] == [
        (1, 0, 8, 1),
        (11, 80, 16, 1),
        (21, 0, 16, 2),
    ]


def test_a_restart_that_was_told_an_epoch_begins_it() -> None:
    """Unless the checkpoint was in that epoch already."""
    for told, first in ((2, (2, 0, 8)), (1, (1, 80, 8))):
        trainer = Trainer()
        trainer.process(10, every=10)
        trainer.process(20, load=10, epoch=told, every=20)

        assert readings_of(joined(trainer, 20)[0])[10] == first


def test_a_run_that_was_told_to_begin_in_a_later_epoch_does() -> None:
    trainer = Trainer()
    trainer.process(5, epoch=2, every=5)

    assert readings_of(joined(trainer, 5)[0]) == [(2, 8 * n, 8) for n in range(5)]


def test_without_trainer_states_the_configs_alone_are_followed() -> None:
    trainer = Trainer()
    trainer.process(40, every=10)
    alone = [replace(stretch, position=None) for stretch in trainer.stretches()]

    assert readings_of(join_stretches(alone, POSITIONS, 40)[0]) == trainer.kept()


def test_a_jump_that_no_config_explains_is_noted_and_followed() -> None:
    trainer = Trainer()
    trainer.process(20, every=10)
    last = trainer.saved[20]
    trainer.saved[20] = replace(last, position=Position(epoch=1, examples=176))

    segments, notes = joined(trainer, 20)

    assert readings_of(segments)[9:11] == [(1, 72, 8), (1, 96, 8)]
    assert notes == [
        "where between steps 10 and 20 the data loader jumped from instance 80 of epoch 1 to 96 of epoch 1 (taken to "
        "be right after step 10)"
    ]


def test_a_position_that_cannot_be_reached_is_a_mismatch() -> None:
    trainer = Trainer()
    trainer.process(20, every=10)
    trainer.saved[20] = replace(trainer.saved[20], position=Position(epoch=1, examples=72))

    with pytest.raises(
        OrderMismatch, match=r"checkpoint 20: its data loader stood at instance 72 of epoch 1, which 10 "
    ):
        joined(trainer, 20)


def test_an_epoch_without_a_batch_is_a_mismatch() -> None:
    stretch = Stretch(last_step=1, position=None, instances_per_batch=8)

    with pytest.raises(OrderMismatch, match="the 7 instances of an epoch do not fill one batch of 8"):
        join_stretches([stretch], 7, 1)


@pytest.mark.parametrize(
    ("text", "steps"), [("40", 40), ("4e1", 40), ("2ep", 62), ("1000T", 10 + 8), ("1e3T", 18), ("100T", 10)]
)
def test_durations_are_read_as_the_trainer_reads_them(text: str, steps: int) -> None:
    """At step 10, after 200 tokens, with 100 tokens a step and 31 batches an epoch."""
    progress = Progress(tokens_per_step=100, step=10, tokens=200, batches=10, batches_per_epoch=31)

    assert max_steps(olmo_duration(text), progress) == steps


# --- folders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adder:
    """Writes a run folder and registers it."""

    folder: Path
    workspace: Workspace
    write: Callable[..., Path]

    def __call__(self, saved: dict[int, dict[str, Any]], data: Path = OLMO, **common: Any) -> Any:
        folder = self.write(self.folder, saved, **common)
        return add(folder, name="run", data=data, workspace=self.workspace)

    def instances(self, first: int, last: int) -> list[list[int]]:
        return [one.instances.tolist() for one in batches("run", first, last, workspace=self.workspace)]


@pytest.fixture
def adder(tmp_path: Path, workspace: Workspace, write_olmo: Callable[..., Path]) -> Adder:
    return Adder(tmp_path / "olmo", workspace, write_olmo)


def shuffled(seed: int, count: int = POSITIONS) -> np.ndarray:
    order = np.arange(count, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed)).shuffle(order)
    return order


def test_a_restarted_run_shows_both_attempts_and_gives_the_kept_one(adder: Adder) -> None:
    """Checkpoint 30 was saved by a process that had loaded 10 and skipped three batches."""
    again = {"load_path": "/old/place/step10-unsharded/", "fast_forward_batches": 3}
    run = adder(
        {10: {"position": (0, 80)}, 20: {"position": (0, 160)}, 25: {"position": (0, 224), "config": again}},
        stop_at=28,
    )
    order = shuffled(6198)

    assert adder.instances(9, 12) == [order[a : a + 8].tolist() for a in (72, 104, 112)]
    query = "SELECT attempt, min(position) FROM batches WHERE step = 11 GROUP BY 1 ORDER BY 1"
    assert connect(adder.workspace).execute(query).fetchall() == [(1, 80), (2, 104)]
    rows = where("run", instance=int(order[104]), workspace=adder.workspace).to_pylist()
    assert [(row["step"], row["attempt"]) for row in rows] == [(11, 2), (14, 1)]
    assert run.trust.witness == "the data loader's position in 3 of 3 checkpoints"


def test_a_record_is_compared_with_the_attempt_that_was_kept(adder: Adder) -> None:
    """Steps 26 and 27 were recorded twice, though no checkpoint tells of the first time."""
    order = shuffled(6198)
    again = {"load_path": "step20-unsharded", "fast_forward_batches": 1}
    lines = [{"step": s, "indices": order[s * 8 - 8 :][:8].tolist()} for s in range(1, 28)]
    lines += [{"step": s, "indices": order[s * 8 :][:8].tolist()} for s in range(21, 28)]
    adder.folder.mkdir()
    (adder.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    run = adder({20: {"position": (0, 160)}, 27: {"position": (0, 224), "config": again}}, stop_at=27)

    assert run.trust.witness.startswith("the trainer's record of instances, steps 1..27 (27 batches)")


def test_an_unexplained_jump_is_part_of_the_trust(adder: Adder) -> None:
    run = adder({10: {"position": (0, 80)}, 20: {"position": (0, 176)}}, stop_at=20)

    assert "where between steps 10 and 20 the data loader jumped from instance 80" in run.trust.missing
    assert run.facts["order_notes"] in run.trust.missing


WRONG: dict[str, tuple[dict[int, dict[str, Any]], dict[str, Any], str]] = {
    "a loader that went back": (
        {10: {"position": (0, 80)}, 20: {"position": (0, 72)}},
        {},
        "checkpoint 20: its data loader stood at instance 72 of epoch 1, .*: a checkpoint or config is another run's",
    ),
    "a batch that fills no epoch": ({0: {"position": (0, 0)}}, {"global_train_batch_size": 251}, "do not fill one"),
}


@pytest.mark.parametrize("what", WRONG)
def test_positions_of_another_run_are_a_mismatch(what: str, adder: Adder) -> None:
    saved, common, said = WRONG[what]

    with pytest.raises((OrderMismatch, CorruptFile), match=said):
        adder(saved, **common)


def test_a_folder_that_was_renamed_is_a_mismatch(adder: Adder) -> None:
    adder.write(adder.folder, {10: {"position": (0, 80)}})
    (adder.folder / "step10-unsharded").rename(adder.folder / "step20-unsharded")

    with pytest.raises(OrderMismatch, match="is named after step 20; its trainer state says step 10"):
        add(adder.folder, data=OLMO, workspace=adder.workspace)


def test_an_order_file_of_another_seed_says_which_side_is_wrong(adder: Adder) -> None:
    for seed, fits in ((6199, True), (3, False)):
        (adder.folder / "train_data").mkdir(parents=True, exist_ok=True)
        shuffled(seed).tofile(adder.folder / "train_data" / "global_indices.npy")
        if fits:
            assert "global_indices.npy is the order of epoch 2" in adder({10: {"position": (0, 80)}}).trust.witness
            adder = replace(adder, folder=adder.folder.with_name("other"))
        else:
            with pytest.raises(OrderMismatch, match="is not what the rule gives with seed 6198 for any epoch: config"):
                adder({10: {"position": (0, 80)}})


def test_an_order_file_of_more_instances_than_the_files_hold_is_a_mismatch(adder: Adder) -> None:
    (adder.folder / "train_data").mkdir(parents=True)
    shuffled(6198, 260).tofile(adder.folder / "train_data" / "global_indices.npy")

    with pytest.raises(OrderMismatch, match="up to 259; the token files hold 250: files are missing"):
        adder({10: {"position": (0, 80)}})


@pytest.mark.parametrize(
    ("config", "last"),
    [
        ({"max_duration": 40}, 50),
        ({"max_duration": 25}, 31),  # ten more than it was told, but not into another epoch
        ({"max_duration": "2ep"}, 62),
        ({"max_duration": "40960T"}, 50),
        ({"max_duration": 40, "stop_at": 33}, 33),
        ({"max_duration": 40, "stop_after": 12}, 12),
    ],
)
def test_a_run_ends_where_its_config_lets_it(config: dict[str, Any], last: int, adder: Adder) -> None:
    assert adder({0: {"position": (0, 0)}}, **config).last_step == last


# --- files of the order ----------------------------------------------------------------------------------------------


def test_a_file_that_is_listed_twice_counts_twice(adder: Adder) -> None:
    names = [f"data/part-{n}-00000.npy" for n in (2, 0, 2)]

    run = adder({10: {"position": (0, 80)}}, data__paths=names, stop_at=20)

    assert [(f.name, f.first_instance) for f in run.files] == [(names[0], 0), (names[1], 47), (f"{names[2]}#2", 167)]
    assert adder.instances(0, 1) == [shuffled(6198, 214)[:8].tolist()]
    tokens = connect(adder.workspace).execute(
        'SELECT instance, file, "offset" FROM instances WHERE instance IN (3, 170)'
    )
    assert sorted(set(tokens.fetchall())) == [(3, names[0], 384), (170, f"{names[2]}#2", 384)]


def test_datasets_are_taken_in_order_of_their_labels(adder: Adder) -> None:
    labelled = {"web": ["data/part-0-00000.npy"], "books": ["data/part-2-00000.npy", "data/part-1-00000.npy"]}

    run = adder({10: {"position": (0, 80)}}, data__paths=None, data__datasets=labelled)

    assert [file.name for file in run.files] == [f"data/part-{n}-00000.npy" for n in (2, 1, 0)]


def test_label_masks_keep_tokens_out_of_the_loss(adder: Adder, tmp_path: Path) -> None:
    """Every third token of every file, counted from the file's start."""
    masks, expected = [], []
    for n in range(3):
        num_tokens = (OLMO / "data" / f"part-{n}-00000.npy").stat().st_size // 2
        mask = np.arange(num_tokens) % 3 > 0
        mask.tofile(tmp_path / f"mask-{n}.npy")
        masks.append(str(tmp_path / f"mask-{n}.npy"))
        expected.append(mask[: num_tokens // 128 * 128].reshape(-1, 128))
    home = tmp_path / "data"
    home.symlink_to(OLMO / "data")

    adder({10: {"position": (0, 80)}}, data=tmp_path, data__label_mask_paths=masks, stop_at=20)

    for one in batches("run", 0, 20, workspace=adder.workspace):
        assert np.array_equal(one.counts_as_target, np.concatenate(expected)[one.instances])
    assert where("run", instance=0, workspace=adder.workspace).num_rows <= 1


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"data__label_mask_paths": ["a", "b"]}, CorruptFile, "names 2 label masks for 3 token files"),
        ({"data__paths": None}, MissingFile, "lists no token files .data.paths, data.datasets."),
        ({"data__custom_dataset": {"name": "x"}}, UnsupportedRecipe, "data.custom_dataset has an order"),
    ],
)
def test_data_that_cannot_be_the_runs_are_refused(
    fields: dict[str, Any], error: type[Exception], said: str, adder: Adder
) -> None:
    with pytest.raises(error, match=said):
        adder({10: {"position": (0, 80)}}, **fields)


@pytest.mark.parametrize(("drop_last", "length"), [(True, 249), (False, 252)])
def test_ranks_that_do_not_divide_the_instances_shorten_or_lengthen_the_epoch(
    drop_last: bool, length: int, adder: Adder
) -> None:
    """Three ranks: the last instance is dropped, or the first two come again at the end."""
    order = shuffled(6198)
    recorded = order[:249] if drop_last else np.append(order, order[:2])
    (adder.folder / "train_data").mkdir(parents=True)
    recorded.tofile(adder.folder / "train_data" / "global_indices.npy")

    run = adder(
        {10: {"position": (0, 120), "world_size": 3}}, data__drop_last=drop_last, global_train_batch_size=12, stop_at=21
    )

    assert run.environment["instances_per_epoch"] == length
    assert "global_indices.npy is the order of epoch 1" in run.trust.witness
    assert [i for rows in adder.instances(0, length // 12) for i in rows] == recorded[: length // 12 * 12].tolist()
    first = where("run", instance=int(order[0]), workspace=adder.workspace).column("step").to_pylist()
    assert first == ([1] if drop_last else [1, 21])


def test_attention_masks_and_filters_are_taken_from_the_config(adder: Adder) -> None:
    run = adder({10: {"position": (0, 80)}}, data__generate_attention_mask=True, model__pad_token_id=7)
    other = replace(adder, folder=adder.folder.with_name("other"), workspace=Workspace(adder.folder / "workspace"))

    assert (run.masking.hidden_token_id, run.masking.repetition) == (7, (13, 1, 32))
    assert other({10: {"position": (0, 80)}}, data__instance_filter=None).masking.repetition is None
    for one in batches("run", 0, 5, workspace=adder.workspace):
        assert not one.counts_as_target[one.token_ids == 7].any()
