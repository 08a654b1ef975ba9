"""Exposures against a count by hand, token by token: whatever hides, pads, skips, or is taken again."""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index.batch import StepPlan, read_batch
from data_index.batch_queries import plan_of, reader_of
from data_index.errors import Busy, CorruptFile, InvalidRange, StepOutOfRange, UnknownOrder
from data_index.exposures import COLUMNS, COUNTS, Exposures
from data_index.files import exclusive_lock, read_json, sha256_of_file
from data_index.pieces import Pieces, write_pieces
from data_index.registration import add
from data_index.run import Masking, Order, OrderTrust, Run, Segment, TokenFile
from data_index.run_file import read_run, write_run
from data_index.seal import write_seal
from data_index.step_rows import rows_of_step
from data_index.store import connect
from data_index.workspace import Workspace
from forensics import exposures, fork
from forensics.counting_plan import plan_exposures
from forensics.lookup import batch
from tests.data_index.conftest import RawRun
from tests.data_index.test_every_order import CASES, Maker, raw_tokens

Counts = dict[int, dict[int, tuple[int | None, ...]]]  # step -> token id -> the columns


@dataclass
class ByHand:
    """Counts one token at a time."""

    extra_label: bool = False
    length: int = 0
    masking: Masking = Masking()
    pad: int = 0
    counts: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hidden: list[tuple[int, int, str]] = field(default_factory=list)

    def row(self, step: int, applied: bool, tokens: Sequence[int], masked: Sequence[bool]) -> None:
        """A row before its padding."""
        filtered = applied and self.filtered(tokens)
        for place, token in enumerate(tokens):
            is_input = not (self.extra_label and place == self.length - 1)
            counts = self.counts[token]
            if not applied:
                counts["not_applied"] += is_input
                continue
            counts["filtered_input" if filtered else "as_input"] += is_input
            if place > 0:
                hidden = masked[place] or token == self.masking.hidden_token_id
                counts["filtered_target" if filtered else "masked_target" if hidden else "as_target"] += 1
            counts["first_step"] = counts["first_step"] or step
            counts["last_step"] = step

    def filtered(self, tokens: Sequence[int]) -> bool:
        if self.masking.repetition is None:
            return False
        longest, shortest, most = self.masking.repetition
        padding = [self.pad] * (self.length - len(tokens)) if self.masking.filter_sees_padding else []
        row = [*tokens, *padding]
        for period in range(shortest, longest + 1):
            run = 0
            for place in range(period, len(row)):
                run = run + 1 if row[place] == row[place - period] else 0
                if run >= (max(most, 3) - 1) * period:
                    return True
        return False

    def table(self) -> dict[int, tuple[int | None, ...]]:
        rows = {token: tuple(counts[name] for name in COLUMNS) for token, counts in self.counts.items()}
        return {t: (*row[:-2], *(step or None for step in row[-2:])) for t, row in rows.items() if any(row)}


def tables_of(workspace: Workspace, run: str) -> Counts:
    found: Counts = {}
    for step, token, *values in (
        connect(workspace).execute(f"SELECT step, token_id, {', '.join(COLUMNS)} FROM exposures WHERE run = ?", [run])
    ).fetchall():
        assert token not in found.setdefault(step, {})
        found[step][token] = tuple(values)
    return found


# --- a run in which everything happens -------------------------------------------------------------------------------

LENGTH, PAD, HIDDEN = 12, 5, 5  # as where the end of text pads too: it must not be taken for a hidden target
SEGMENT = Segment(first_step=1, num_steps=4, epoch=1, first_position=0, instances_per_batch=4)
SEGMENTS = (
    SEGMENT,
    replace(SEGMENT, first_step=5, num_steps=2, first_position=16, outcome="skipped"),
    replace(SEGMENT, first_step=7, num_steps=2, first_position=24),
    replace(SEGMENT, first_step=8, num_steps=3, first_position=36, attempt=2),  # 28..36 is not read by kept steps
    replace(SEGMENT, first_step=11, num_steps=1, first_position=48, outcome="withheld"),
    replace(SEGMENT, first_step=12, num_steps=4, epoch=2, instances_per_batch=6),
)
KEPT_SEGMENT = {**dict.fromkeys(range(1, 5), 0), 5: 1, 6: 1, 7: 2, **dict.fromkeys(range(8, 11), 3), 11: 4} | {
    step: 5 for step in range(12, 16)
}
# (step, attempt, value); of step 9 it was the first attempt that was skipped
LOGGED = ((3, 1, 1.0), (4, 1, 0.0), (9, 1, 1.0), (9, 2, 0.0), (10, 2, 1.0))
EDITS = (
    (2, 1, 5, 1, 4),
    (2, 1, 5, 3, 9),
    (8, 2, 37, 0, 12),
    (13, 1, 7, 11, 12),
)  # step, attempt, position, start, stop
NOT_APPLIED = (3, 5, 6, 10, 11)


@dataclass(frozen=True)
class Case:
    """What a run has: label masks, a filter, a hidden id, rows of pieces, a label after the row, of which dtype."""

    extra_label: bool
    filter: bool
    hides: bool
    in_pieces: bool
    dtype: str
    sees_padding: bool = False

    def write(self, folder: Path) -> Path:
        """A native run folder; its rows and their label masks lie beside it as JSON."""
        (folder / "order").mkdir(parents=True)
        random = np.random.default_rng(11)
        ids = np.append(np.arange(8), 300)
        files, content, masks = [], [], []
        for number in range(2):
            tokens = ids[random.integers(0, len(ids), 40 * LENGTH)]
            tokens[LENGTH * 5 : LENGTH * 6 + 4] = 7  # repeats for sure
            path = folder / f"{number}.bin"
            tokens.astype(self.dtype).tofile(path)
            mask = random.random(len(tokens)) < 0.8
            mask.tofile(folder / f"{number}.mask")
            content.append(tokens.tolist())
            masks.append((~mask).tolist() if self.hides else [False] * len(tokens))
            file = TokenFile(
                name=path.name,
                path=path,
                dtype=self.dtype,
                num_bytes=path.stat().st_size,
                first_instance=40 * number,
                num_instances=40,
                label_mask=folder / f"{number}.mask" if self.hides else None,
            )
            files.append(replace(file, first_instance=70, num_instances=10 * number) if self.in_pieces else file)
        places = self.places(random)
        rows = [[(file, t) for file, start, stop in pieces for t in range(start, stop)] for pieces in places]
        (folder / "rows.json").write_text(
            json.dumps([[[content[f][t] for f, t in row], [masks[f][t] for f, t in row]] for row in rows])
        )
        orders = {}
        for epoch in (1, 2):
            np.save(folder / "order" / f"epoch-{epoch}.npy", random.permutation(len(rows)).astype(np.uint32))
            path = folder / "order" / f"epoch-{epoch}.npy"
            orders[f"epoch_{epoch}"] = {"path": f"order/{path.name}", "sha256": sha256_of_file(path)}
        masking = Masking(
            repetition=(3, 1, 3) if self.filter else None,
            filter_sees_padding=self.sees_padding,
            hidden_token_id=HIDDEN if self.hides else None,
        )
        run = Run(
            name="run",
            layout="native",
            source=folder,
            sequence_length=LENGTH,
            files=tuple(files),
            order=Order(rule="file", parameters=orders),
            segments=SEGMENTS,
            trust=OrderTrust(level="exact", witness="the test"),
            config_format="native",
            config={},
            extra_label=self.extra_label,
            masking=masking,
            pad_token_id=PAD,
            pieces=self.stored(places, folder),
        )
        write_run(run, folder)
        self.write_tables(folder)
        return folder

    def places(self, random: np.random.Generator) -> list[list[tuple[int, int, int]]]:
        if not self.in_pieces:
            return [[(row // 40, row % 40 * LENGTH, (row % 40 + 1) * LENGTH)] for row in range(80)]
        found = []
        for _ in range(70):
            lengths = [int(n) for n in random.integers(0, 6, 3)]  # 0 tokens, to 15, which are cut to a row
            if sum(lengths) > LENGTH:
                lengths[2] -= sum(lengths) - LENGTH
            starts = random.integers(0, 40 * LENGTH - 6, 3)
            found.append(
                [(int(random.integers(2)), int(s), int(s) + n) for s, n in zip(starts, lengths, strict=True) if n > 0]
            )
        return found + [[(1, row * LENGTH, (row + 1) * LENGTH)] for row in range(10)]  # cut from a file

    def stored(self, places: list[list[tuple[int, int, int]]], folder: Path) -> Any:
        if not self.in_pieces:
            return None
        places = places[:70]
        file, start, stop = np.array([piece for pieces in places for piece in pieces], dtype=np.int64).T
        first = np.cumsum([0, *map(len, places)])
        return write_pieces(Pieces(first=first, file=file.astype(np.int32), start=start, stop=stop), folder / "pieces")

    def write_tables(self, folder: Path) -> None:
        step, attempt, position, start, stop = zip(*EDITS, strict=True)
        masks = {"step": step, "attempt": attempt, "position": position, "instance": [0] * len(step)}
        masks |= {"start": start, "stop": stop, "reason": ["an edit"] * len(step)}
        pyarrow.parquet.write_table(pyarrow.table(masks), folder / "masks.parquet")
        for saved in (0, 9, 15):  # the last one commits the metrics
            (folder / "checkpoints" / f"step{saved}").mkdir(parents=True)
        (folder / "metrics").mkdir()
        step, attempt, value = zip(*LOGGED, strict=True)
        metrics = {"step": step, "attempt": attempt, "name": ["skipped"] * len(step), "value": value}
        metrics |= {"original_name": ["optim/step skipped"] * len(step)}
        pyarrow.parquet.write_table(pyarrow.table(metrics), folder / "metrics" / "1-15.parquet")

    def by_hand(self, folder: Path) -> Counts:
        """Counts after each step, from the raw files."""
        rows = json.loads((folder / "rows.json").read_text())
        orders = {epoch: np.load(folder / "order" / f"epoch-{epoch}.npy") for epoch in (1, 2)}
        masking = Masking(
            repetition=(3, 1, 3) if self.filter else None,
            filter_sees_padding=self.sees_padding,
            hidden_token_id=HIDDEN if self.hides else None,
        )
        count, found = ByHand(extra_label=self.extra_label, length=LENGTH, masking=masking, pad=PAD), {}
        for step, number in KEPT_SEGMENT.items():
            segment = SEGMENTS[number]
            first = segment.first_position + (step - segment.first_step) * segment.instances_per_batch
            for position in range(first, first + segment.instances_per_batch):
                tokens, masked = rows[orders[segment.epoch][position]]
                masked = list(masked)
                for at, _, where, start, stop in EDITS:
                    if (at, where) == (step, position):
                        masked[start:stop] = [True] * len(masked[start:stop])
                count.row(step, step not in NOT_APPLIED, tokens, masked)
            found[step] = count.table()
        return found


CASES_BY_HAND = [
    Case(*values, dtype)
    for *values, dtype in product((False, True), (False, True), (False, True), (False, True), ("uint16", "int32"))
] + [Case(False, True, False, True, "uint16", sees_padding=True)]


@pytest.mark.parametrize("case", CASES_BY_HAND, ids=str)
def test_counts_are_those_by_hand_after_every_step(case: Case, tmp_path: Path, workspace: Workspace) -> None:
    folder = case.write(tmp_path / "run")
    add(folder, workspace=workspace)

    found = exposures("run", every=1, workspace=workspace)

    expected = case.by_hand(folder)
    assert tables_of(workspace, "run") == expected
    assert [row["step"] for row in found.summary] == list(range(1, 16))
    for row in found.summary:
        counts = expected[row["step"]].values()
        assert [row[name] for name in COUNTS] == [sum(values[n] for values in counts) for n in range(len(COUNTS))]
        assert row["seen_ids"] == sum(values[-1] is not None for values in counts)
    assert sum(row["new_ids"] for row in found.summary) == found.summary[-1]["seen_ids"]


@pytest.mark.parametrize("case", [c for c in CASES_BY_HAND if c.filter and c.hides and c.dtype == "uint16"], ids=str)
def test_what_the_trainer_hid_is_what_a_batch_hides(case: Case, tmp_path: Path, workspace: Workspace) -> None:
    """And it changes neither a plan nor what a batch says of its masks."""
    run = add(case.write(tmp_path / "run"), workspace=workspace)
    before = plan_of(workspace, run, 0, 15), batch("run", "0:15", workspace=workspace)
    exposures("run", workspace=workspace)

    after = plan_of(workspace, run, 0, 15)
    assert batch("run", "0:15", workspace=workspace) == before[1]
    reader, hidden = reader_of(workspace, run), defaultdict(set)
    stretches = connect(workspace).execute(
        "SELECT step, attempt, position, instance, start, stop FROM masks WHERE reason <> 'an edit'"
    )
    for step, attempt, position, instance, start, stop in stretches.fetchall():
        row = position - run.segment_of_step(step).positions_of_step(step).start
        assert attempt == run.segment_of_step(step).attempt and instance == after[step].instances[row]
        hidden[step] |= {(row, place) for place in range(start, stop)}
    for step in range(1, 16):
        assert after[step].masks == before[0][step].masks
        read = read_batch(after[step], reader)
        shut = {tuple(place) for place in np.argwhere(~read.counted_by_trainer).tolist()}
        assert hidden[step] == (set() if step in NOT_APPLIED else shut)
    reasons = {reason for (reason,) in connect(workspace).execute("SELECT DISTINCT reason FROM masks").fetchall()}
    assert reasons == {"an edit", "instance_filter", "label_mask", "hidden_token"} | (
        {"padding"} if case.in_pieces else set()
    )
    edits = connect(workspace).execute("SELECT step, attempt, position, start, stop FROM edit_masks ORDER BY ALL")
    assert edits.fetchall() == sorted(EDITS)


def test_all_of_a_batch_is_counted_once(tmp_path: Path, workspace: Workspace) -> None:
    """Inputs of all kinds are the batch's inputs, and targets its targets, padding apart."""
    case = CASES_BY_HAND[-2]
    run = add(case.write(tmp_path / "run"), workspace=workspace)
    reader, plan = reader_of(workspace, run), plan_of(workspace, run, 0, 15)
    for step in plan.steps:
        counts = Exposures(extra_label=run.extra_label)
        counts.count_step(step, rows_of_step(plan[step], reader), applied=step not in NOT_APPLIED)

        lengths = reader.num_tokens_of(plan[step].instances)
        sums = {name: int(counts[name].sum()) for name in COLUMNS}
        inputs = np.minimum(lengths, LENGTH - run.extra_label).sum()
        assert sums["as_input"] + sums["filtered_input"] + sums["not_applied"] == inputs
        targets = sums["as_target"] + sums["masked_target"] + sums["filtered_target"]
        assert targets == (0 if step in NOT_APPLIED else np.maximum(lengths - 1, 0).sum())
        assert (counts.table >= 0).all()


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_order_and_layout_is_counted(
    name: str, tmp_path: Path, workspace: Workspace, write_core: Callable[..., Path], write_olmo: Callable[..., Path]
) -> None:
    """Places by SQL and bytes by numpy; a run whose data are not all there is counted up to the gap."""
    added = CASES[name](Maker(tmp_path, workspace, write_core, write_olmo))
    run, raw = added.run, raw_tokens(added.run)
    last = added.not_there.start - 1 if added.not_there else run.last_step
    rows = connect(workspace).execute(
        "SELECT b.step, b.position, list(struct_pack(file := p.file, start := p.start, stop := p.stop) ORDER BY "
        "p.first_token) FROM batches b LEFT JOIN (SELECT instance, file, first_token, start, stop FROM pieces UNION "
        'SELECT instance, file, 0, "offset", "offset" + num_tokens FROM batches ANTI JOIN pieces USING (instance)) p '
        "USING (instance) WHERE b.step <= ? GROUP BY ALL ORDER BY b.step, b.position",
        [last],
    )
    count = ByHand(run.extra_label, run.sequence_length, run.masking, run.pad_token_id or 0)
    for step, _, pieces in rows.fetchall():
        tokens = [t for p in pieces if p["file"] for t in raw[p["file"]][p["start"] : p["stop"]].tolist()]
        count.row(step, True, tokens, [False] * len(tokens))
    if added.not_there:
        with pytest.raises(StepOutOfRange, match="read data that are not there"):
            exposures("run", workspace=workspace)

    steps = f"{run.first_step - 1}:{last}" if added.not_there else "all"
    table = exposures("run", steps, workspace=workspace).table(step=last)

    found = {row["token_id"]: tuple(row[name] for name in COLUMNS) for row in table.to_pylist()}
    assert found == count.table()
    assert bool(tables_of(workspace, "run")) is not bool(added.not_there)


def test_the_sample_run_is_counted_as_its_files_say(tiny: Workspace, raw: RawRun) -> None:
    """At each of its checkpoints."""
    count, expected = ByHand(length=raw.length), {}
    for reading in raw.readings:
        if reading.step - 1 in (5, 10, 15):
            expected[reading.step - 1] = expected.get(reading.step - 1) or count.table()
        tokens = raw.token_ids[reading.instance].tolist()
        count.row(reading.step, True, tokens, [False] * len(tokens))

    exposures("tiny", workspace=tiny)

    assert tables_of(tiny, "tiny") == expected | {20: count.table()}
    assert connect(tiny).execute("SELECT count(*) FROM hidden").fetchall() == [(0,)]


@pytest.mark.parametrize("name", ["core", "skip", "olmo"])
def test_real_runs_are_counted_as_the_trainers_record_says(name: str, core_shared: Workspace) -> None:
    """By the instances that the trainer logged, as far as it did, and the tokens of the files at their place."""
    run = core_shared.run(name)
    raw = np.concatenate([np.fromfile(file.on_disk, file.dtype)[: file.num_instances * 128] for file in run.files])
    rows = raw.reshape(-1, 128)
    consumed = connect(core_shared).execute(
        "SELECT step, instances FROM consumed WHERE run = ? QUALIFY row_number() OVER (PARTITION BY step ORDER BY "
        "attempt DESC) = 1 ORDER BY step",
        [name],
    )
    count, last = ByHand(length=128, masking=run.masking), 0
    for last, instances in consumed.fetchall():
        for instance in instances:
            count.row(last, True, rows[instance].tolist(), [False] * 128)

    found = exposures(name, f"0:{last}", workspace=core_shared).table(step=last)

    assert last >= 20
    assert {row["token_id"]: tuple(row[c] for c in COLUMNS) for row in found.to_pylist()} == count.table()
    assert any(counts["filtered_input"] for counts in count.counts.values()) is (name == "skip")


def test_a_fork_is_counted_from_where_it_begins(tiny: Workspace) -> None:
    """Its edits are hidden, its counts are its own, and counting changes neither it nor its parent."""
    read = plan_of(tiny, tiny.run("tiny"), 5, 9)
    edits = [f"mask instance:{read[6].instances[1]},{read[9].instances[0]}", f"drop instance:{read[7].instances[3]}"]
    made = fork("tiny", from_step=5, num_steps=4, edits=edits, workspace=tiny)
    run = tiny.run(made.id)
    plan = plan_of(tiny, run, 5, 9)
    exposures(made.id, every=1, workspace=tiny)

    count, reader, expected = ByHand(length=64), reader_of(tiny, run), {}
    for step in plan.steps:
        for row, tokens in enumerate(reader.rows(plan[step].instances).tolist()):
            masked = [any(r == row and a <= t < b for r, a, b in plan[step].masks) for t in range(64)]
            count.row(step, True, tokens, masked)
        expected[step] = count.table()
    assert tables_of(tiny, made.id) == expected
    again = plan_of(tiny, run, 5, 9)
    assert [again[s].masks for s in again.steps] == [plan[s].masks for s in plan.steps]
    assert tables_of(tiny, "tiny") == {}


# --- both ways to read -----------------------------------------------------------------------------------------------


def test_blocks_are_the_rows_in_any_order(tmp_path: Path, workspace: Workspace) -> None:
    """Also rows that come twice; in the files' own dtype where they are arrays on disk."""
    for case in (CASES_BY_HAND[0], CASES_BY_HAND[2], CASES_BY_HAND[-1]):
        folder = tmp_path / str(case)
        reader = reader_of(
            workspace,
            add(case.write(folder), name=f"run-{case.dtype}-{case.in_pieces}-{case.filter}", workspace=workspace),
        )
        instances = np.random.default_rng(1).integers(0, 80, 200)

        rows = np.full((200, LENGTH), -1)
        for block in rows_of_step(StepPlan(step=1, epoch=1, instances=instances), reader):
            assert (rows[block.places] == -1).all() and block.token_ids.dtype == case.dtype
            rows[block.places] = block.token_ids
        assert np.array_equal(rows, reader.rows(instances))


def test_a_changed_block_is_noticed(tmp_path: Path, workspace: Workspace) -> None:
    folder = CASES_BY_HAND[0].write(tmp_path / "run")
    add(folder, workspace=workspace)
    tokens = np.fromfile(folder / "1.bin", "<u2")
    tokens[7] += 1
    tokens.tofile(folder / "1.bin")

    with pytest.raises(CorruptFile, match=r"1.bin changed: block 0"):
        exposures("run", workspace=workspace)
    assert exposures("run", verify=False, workspace=workspace).summary


def test_an_id_that_no_vocabulary_has_is_corrupt(tmp_path: Path, workspace: Workspace) -> None:
    """It must not fill the memory."""
    for value, said in ((2**22, "4,194,304"), (-2, "-2")):
        folder = Case(False, False, False, False, "int32").write(tmp_path / str(value))
        tokens = np.fromfile(folder / "0.bin", "<i4")
        tokens[100:] = value
        tokens.tofile(folder / "0.bin")
        add(folder, name=f"run{value}".replace("-", "m"), workspace=workspace)

        with pytest.raises(CorruptFile, match=f"hold the id {said}, which no vocabulary has"):
            exposures(f"run{value}".replace("-", "m"), workspace=workspace)


# --- a long count ----------------------------------------------------------------------------------------------------


class Died(BaseException):
    """As if the process had been killed."""


@dataclass
class Renames:
    """Stands for os.replace, and dies at a call."""

    dies_at: int = 0
    count: int = 0
    rename: Callable[..., None] = os.replace

    def __call__(self, source: Any, target: Any) -> None:
        self.count += 1
        if self.count == self.dies_at:
            raise Died
        self.rename(source, target)


def test_a_count_that_died_at_any_rename_goes_on_exactly(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is in force before all is counted; the same rows are in the end, and no step is counted again."""
    case = CASES_BY_HAND[-2]
    folder = case.write(tmp_path / "run")
    add(folder, workspace=workspace)

    def copied(name: str) -> Workspace:
        return Workspace(shutil.copytree(workspace.folder, tmp_path / name))

    monkeypatch.setattr(os, "replace", undisturbed := Renames())
    exposures("run", commit_seconds=0, workspace=copied("undisturbed"))
    expected = {step: counts for step, counts in case.by_hand(folder).items() if step in (9, 15)}
    # All renames of the first commits and of the last one, some between.
    last = undisturbed.count
    for dies_at in (*range(1, 9), *range(9, last - 8, 9), *range(last - 8, last + 1)):
        here, told = copied(f"killed-{dies_at}"), []
        monkeypatch.setattr(os, "replace", Renames(dies_at))
        with pytest.raises(Died):
            exposures("run", commit_seconds=0, workspace=here)
        assert tables_of(here, "run") in ({}, expected)
        monkeypatch.setattr(os, "replace", Renames.rename)
        exposures("run", workspace=here, progress=lambda *numbers, told=told: told.append(numbers))

        assert tables_of(here, "run") == expected
        assert connect(here).execute("SELECT count(*) - count(DISTINCT hidden) FROM hidden").fetchall() == [(0,)]
        # A commit is five renames or more, so that many were made before: their steps are not counted again.
        assert len(told) <= 15 - dies_at // 9
        named = json.dumps(read_json(here.home("run") / "current.json"))
        for kind in ("exposures", "hidden"):
            assert all(f.name in named for f in (here.home("run") / kind).rglob("*.*") if f.name != "state.json")


def test_the_same_question_reads_nothing_again(tiny: Workspace) -> None:
    first = exposures("tiny", workspace=tiny)
    for file in tiny.run("tiny").files:
        file.on_disk.unlink()

    again = exposures("tiny", workspace=tiny)

    assert again.summary == first.summary and again.table() == first.table()
    assert plan_exposures("tiny", workspace=tiny)["tokens"] == 0


def test_a_stretch_is_counted_from_its_start_and_stays_its_own(tiny: Workspace) -> None:
    """Two stretches add up to the whole; what is known of the run is not touched."""
    parts = [exposures("tiny", steps, workspace=tiny).table() for steps in ("0:7", "7:20")]
    assert tables_of(tiny, "tiny") == {}
    whole = exposures("tiny", every=7, workspace=tiny)

    def inputs(table: Any, step: int) -> Counter[int]:
        rows = table.to_pylist()
        return Counter({row["token_id"]: row["as_input"] for row in rows if row["step"] == step})

    assert [sorted(set(part.column("step").to_pylist())) for part in parts] == [[5, 7], [10, 15, 20]]
    assert inputs(parts[0], 7) + inputs(parts[1], 20) == inputs(whole.table(), 20)
    assert inputs(parts[0], 7) == inputs(whole.table(step=7), 7)
    assert sorted(tables_of(tiny, "tiny")) == [5, 7, 10, 14, 15, 20]


def test_a_plan_says_what_it_would_take(tiny: Workspace) -> None:
    cost = plan_exposures("tiny", every=7, workspace=tiny)

    assert cost == cost | {"from": 0, "to": 20, "counted_to": 0, "records": 6, "tokens": 20 * 8 * 64, "download": 0}
    assert cost["read"] == 2 * cost["tokens"]
    assert tables_of(tiny, "tiny") == {} and not (tiny.home("tiny") / "exposures").exists()


def test_what_cannot_be_counted_is_said(tiny: Workspace) -> None:
    with pytest.raises(InvalidRange, match="--every 0"):
        exposures("tiny", every=0, workspace=tiny)
    with exclusive_lock(tiny.home("tiny") / "exposures.lock", "counting"), pytest.raises(Busy, match="counting"):
        exposures("tiny", workspace=tiny)
    home = tiny.home("tiny")
    trust = OrderTrust(level="unknown", witness="nothing", missing="the data")
    write_run(replace(read_run(home), segments=(), trust=trust, facts={"last_step": "20"}), home)
    write_seal(home)
    with pytest.raises(UnknownOrder, match="what the steps of tiny read is not known here"):
        exposures("tiny", workspace=tiny)


# --- in SQL ----------------------------------------------------------------------------------------------------------


def test_the_macro_gives_the_last_record_not_after_a_step(tiny: Workspace) -> None:
    exposures("tiny", workspace=tiny)

    for step, at in ((4, None), (5, 5), (9, 5), (10, 10), (99, 20)):
        found = connect(tiny).execute("SELECT DISTINCT step FROM exposures('tiny', ?)", [step]).fetchall()
        assert found == ([] if at is None else [(at,)])
    assert connect(tiny).execute("FROM exposures('other', 9)").fetchall() == []


def test_skips_are_steps_not_applied_and_data_not_read(tmp_path: Path, workspace: Workspace) -> None:
    add(CASES_BY_HAND[0].write(tmp_path / "run"), workspace=workspace)

    found = connect(workspace).execute("FROM skips ORDER BY first_step, kind").fetchall()

    assert found == [
        ("run", 3, 3, 1, "logged", 1, 8, 4),
        ("run", 5, 6, 1, "skipped", 1, 16, 8),
        ("run", 8, 8, 2, "unread", 1, 28, 8),
        ("run", 9, 9, 1, "logged", None, None, None),
        ("run", 10, 10, 2, "logged", 1, 44, 4),
        ("run", 11, 11, 1, "withheld", 1, 48, 4),
    ]


def test_real_runs_that_skip_nothing_have_no_skips(core_shared: Workspace) -> None:
    assert connect(core_shared).execute("FROM skips").fetchall() == []
