"""What is strange about rows: planted content is flagged, ordinary rows are at the stated rate, odds are counts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_index.batch_queries import plan_of
from data_index.errors import InvalidRange, UnknownInstance
from data_index.files import read_json
from data_index.run import Run
from data_index.text import decode, encode
from data_index.workspace import Workspace
from forensics.content_base import drawn_readings
from forensics.content_measures import FAR_SHARE, MEASURES, Measure, base_counts, content_of
from forensics.content_signals import ContentSignals, RowSignals, base_of_run, plan_base
from probes.token_content import longest_repetitions
from tests.data_index.conftest import RawRun

SCALES = [measure.name for measure in MEASURES if not measure.fixed]


@pytest.fixture(scope="module")
def run(tiny_shared: Workspace) -> Run:
    return tiny_shared.run("tiny")


@pytest.fixture(scope="module")
def planted(run: Run) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = read_json(run.source / "truth.json")
    return found


@pytest.fixture(scope="module")
def base(tiny_shared: Workspace, run: Run, planted: dict[str, dict[str, list[int]]]) -> ContentSignals:
    """Of all rows but the planted ones."""
    return base_of_run(tiny_shared, run, without=planted["binary"]["instances"] + planted["repetitive"]["instances"])


@pytest.fixture(scope="module")
def described(base: ContentSignals, run: Run) -> Callable[..., RowSignals]:
    """Signals of a row whose tokens are given, in the place of one that the run read."""

    def describe(token_ids: list[int] | np.ndarray, instance: int = 0, step: int | None = None) -> RowSignals:
        row = np.resize(np.asarray(token_ids, dtype=np.int64), run.sequence_length)
        (found,) = base.describe([instance], row[None, :], step)
        return found

    return describe


def test_binary_rows_of_a_run_stand_out(base: ContentSignals, planted: dict[str, dict[str, list[int]]]) -> None:
    instances = planted["binary"]["instances"]

    rows = base.describe(instances, base.contents.reader.rows(instances), 9)

    assert [row.instance for row in rows] == instances
    for row in rows:
        assert {"binary_text", "rare_tokens", "unlikely_tokens"} <= row.flags.keys()
        assert row.signals["binary_text"].value > 0.05
        assert not row.signals["read_before"].flagged
    first = base.odds_ratios(rows)[0]
    assert (first.suspects_with, first.suspects, first.base_with) == (2, 2, 0)
    assert first.low > 1


def test_character_tables_stand_out_by_their_tag_and_as_a_group(
    base: ContentSignals, planted: dict[str, dict[str, list[int]]]
) -> None:
    instances = planted["repetitive"]["instances"]
    rows = base.describe(instances, base.contents.reader.rows(instances), 7)

    first = base.odds_ratios(rows)[0]

    assert (first.signal, first.suspects_with, first.base_with) == ("tag:package:encodings", 8, 0)
    assert all(row.signals["tag:package:encodings"].flagged for row in rows)
    assert not any(row.signals["tag:domain:library"].flagged for row in rows)  # so are most rows
    assert base.shifts(rows)[0].p_value < 1e-3


@pytest.mark.parametrize(("text", "period"), [("g4OD", 4), ("255, ", 5)])
def test_strings_that_spiked_olmo_are_found_with_their_span(run: Run, text: str, period: int) -> None:
    tokens = np.array(encode(run, text * 100))
    row = np.concatenate([np.arange(20) + 300, tokens])[:256]

    (found,) = longest_repetitions(row[None, :])
    assert found is not None
    assert (found.period, found.start, found.stop) == (period, 20, 256)
    assert decode(run, row[found.start : found.start + found.period]) == text


def test_a_repetition_is_flagged_with_its_span(described: Callable[..., RowSignals], run: Run) -> None:
    row = np.concatenate([np.arange(100, 110), np.full(40, 7), np.arange(200, 214)])

    signal = described(row).signals["repetition"]

    assert signal.flagged
    assert (signal.value, signal.span, signal.base_rate) == (40, (10, 50), 0)
    assert "1 tokens over and over in tokens 10..50" in signal.description


def test_text_in_another_alphabet_is_flagged(described: Callable[..., RowSignals], run: Run) -> None:
    flags = described(encode(run, "Все счастливые семьи похожи друг на друга")).flags

    assert {"script_shift", "rare_tokens", "unlikely_tokens"} <= flags.keys()
    assert "binary_text" not in described(encode(run, "счастливые семьи")).flags


def test_shuffled_text_is_flagged_by_its_order_alone(
    base: ContentSignals, described: Callable[..., RowSignals]
) -> None:
    """Its tokens are the run's own, as often as the run has them."""
    random, rows = np.random.default_rng(0), base.contents.reader.rows(range(20))

    flags = [described(random.permutation(row)).flags for row in rows]

    assert sum("unusual_order" in found for found in flags) >= 19
    assert sum("rare_tokens" in found for found in flags) <= 1


def test_random_tokens_are_flagged(described: Callable[..., RowSignals], run: Run) -> None:
    flags = described(np.random.default_rng(0).permutation(run.vocabulary_size or 0)).flags

    assert {"random_tokens", "unusual_order"} <= flags.keys()


def test_one_token_over_and_over_has_few_distinct_ones(described: Callable[..., RowSignals]) -> None:
    found = described([40, 41])

    assert found.signals["few_distinct_tokens"].flagged
    assert found.signals["few_distinct_tokens"].value == 1


def test_the_same_tokens_in_another_instance_are_a_duplicate(
    base: ContentSignals, described: Callable[..., RowSignals]
) -> None:
    row = base.contents.reader.rows([5])[0]

    copy, itself = described(row, instance=6), described(row, instance=5)

    assert copy.signals["duplicate"].flagged
    assert copy.signals["shared_text"].value == 1
    assert not itself.signals["duplicate"].flagged
    assert itself.signals["shared_text"].value < 1


def test_rows_described_together_are_duplicates_of_each_other(base: ContentSignals) -> None:
    row = np.random.default_rng(0).integers(0, 300, (1, 64))

    (alone,) = base.describe([77], row)
    together = base.describe([77, 78], np.repeat(row, 2, axis=0))
    twice = base.describe([77, 77], np.repeat(row, 2, axis=0))

    assert [one.signals["duplicate"].flagged for one in (alone, *together, *twice)] == [False, True, True, False, False]
    assert alone.signals["shared_text"].value == 0
    assert together[0].signals["shared_text"].value == 1


def test_what_was_read_before_is_known_from_the_order(
    base: ContentSignals, planted: dict[str, dict[str, list[int]]], tiny_source: Path
) -> None:
    instances = planted["duplicate"]["instances"]
    tokens = base.contents.reader.rows(instances)

    first, second, unknown = (base.describe(instances, tokens, step) for step in (3, 11, None))

    assert not any(row.signals["read_before"].flagged for row in first)
    assert all(row.signals["read_before"].flagged for row in second)
    assert not any("read_before" in row.signals for row in unknown)


def test_base_rates_are_shares_of_all_readings(base: ContentSignals, tiny_source: Path) -> None:
    """Of reading before, by going through the run's readings in plain Python."""
    raw, seen, before = RawRun(tiny_source), set(), 0
    wanted = set(base.readings.instances.tolist())
    readings = [reading for reading in raw.readings if reading.instance in wanted]
    for reading in readings:
        before += reading.instance in seen
        seen.add(reading.instance)

    assert len(readings) == len(base.readings.instances)
    assert base.base_rate("read_before") == pytest.approx(before / len(readings))
    assert all((base.base_rate(name) or 0) <= FAR_SHARE for name in SCALES)


def test_ordinary_rows_that_are_not_in_the_base_are_rarely_flagged(tiny_shared: Workspace, run: Run) -> None:
    """A row beyond all of n others has the chance 1 / (n + 1), for each signal; four times that is allowed."""
    ordinary = np.random.default_rng(3).permutation(70)[:35]  # the planted ones are above
    base = base_of_run(tiny_shared, run, without=ordinary)

    rows = base.describe(ordinary, base.contents.reader.rows(ordinary), 20)

    num_flags = sum(name in row.flags for row in rows for name in SCALES)
    num_base = len(set(base.readings.instances.tolist()))
    assert num_flags / (len(SCALES) * len(rows)) <= 4 / (num_base + 1)


@pytest.mark.parametrize("measure", [m for m in MEASURES if not m.fixed], ids=lambda m: m.name)
def test_a_far_quantile_is_exceeded_by_half_a_percent(measure: Measure) -> None:
    values = np.append(np.random.default_rng(0).normal(size=4000) + 10, np.nan)

    flags = measure.flags(values, measure.threshold(values))

    assert FAR_SHARE * 4000 - 1 <= np.nansum(flags) <= FAR_SHARE * 4000
    assert np.isnan(flags[-1])


def test_a_row_of_the_base_is_measured_as_if_it_were_not(tiny_shared: Workspace, run: Run) -> None:
    whole = base_of_run(tiny_shared, run)
    others = base_of_run(tiny_shared, run, without=[12])
    tokens = whole.contents.reader.rows([12])

    (one,), (other,) = whole.describe([12], tokens, 4), others.describe([12], tokens, 4)

    assert one.signals.keys() == other.signals.keys()
    for name in one.signals.keys() - {"rare_tokens"}:  # which ids are rare depends on the base
        assert one.signals[name].value == pytest.approx(other.signals[name].value), name


def test_odds_are_counts_of_rows_that_are_not_suspects(tiny_shared: Workspace, run: Run) -> None:
    """The base holds the suspects here, and leaves them out when they are compared with it."""
    base = base_of_run(tiny_shared, run)
    instances = plan_of(tiny_shared, run, 16, 17)[17].instances
    rows = base.describe(instances, base.contents.reader.rows(instances), 17)

    by_name = {odds.signal: odds for odds in base.odds_ratios(rows)}

    readings = base.readings
    others = ~np.isin(readings.instances, instances)
    read = base.contents.read_before(readings.instances, readings.steps)[others]
    found = by_name["read_before"]
    assert (found.suspects_with, found.suspects) == (8, 8)  # the second epoch reads what the first did
    assert (found.base_with, found.base) == (read.sum(), others.sum())
    tag = by_name["tag:domain:library"]
    tags = base.contents.tags(readings.instances[others])
    assert tag.base_with == sum("domain:library" in tags[i] for i in readings.instances[others].tolist())
    assert by_name.keys() == {name for row in rows for name in row.signals}


def test_documents_are_counted_by_the_index_or_by_the_end_token(base: ContentSignals, run: Run) -> None:
    """By the end token, the length of what the row's borders cut is not known."""
    end = run.eos_token_id
    instances = np.arange(40)
    rows = base.contents.reader.rows(instances)
    rows[0] = [*range(1, 4), end, *range(1, 11), end, *range(1, 21), end, *[9] * 28]
    rows[1] = [*range(1, 64), end]

    known = base.contents.documents(instances, rows)
    base.contents.has_documents = False
    try:
        seen = base.contents.documents(instances, rows)
    finally:
        base.contents.has_documents = True

    assert (seen["documents"][0], seen["shortest"][0], seen["longest"][0]) == (4, 11, 21)
    assert seen["documents"][1] == 1 and np.isnan(seen["shortest"][1])
    assert known["documents"][2:].tolist() == seen["documents"][2:].tolist()  # the run's own end with that token
    assert not np.isnan(known["longest"]).any()


def test_a_scripts_own_letters_are_not_held_against_it() -> None:
    """A single row of another alphabet among those that stand for the run is as strange as if it were not there."""
    texts = [b"plain", b"text here", "слово".encode()]
    content = content_of(np.arange(3), [np.arange(5) + n for n in range(3)], texts)

    found = base_counts(content, 10).measure(content)["script_shift"]

    assert found[2] == round(float(np.log2((13 + 2) / 1)), 2)  # 13 Latin letters, one added for each of two scripts


@pytest.mark.parametrize("name", ["core", "skip", "olmo"])
def test_runs_of_real_trainers_without_text_are_judged_by_their_tokens(core_shared: Workspace, name: str) -> None:
    record = replace(core_shared.run(name), tokenizer=None)
    base = base_of_run(core_shared, record)
    instances = plan_of(core_shared, record, record.first_step - 1, record.first_step)[record.first_step].instances

    (row, *_) = base.describe(instances, base.contents.reader.rows(instances), record.first_step)

    assert base.without_text is not None and "tokenizer" in base.without_text
    assert {"repetition", "unusual_order", "duplicate", "read_before"} <= row.signals.keys()
    assert {"binary_text", "byte_entropy", "script_shift"}.isdisjoint(row.signals)


def test_a_sample_is_seeded_and_says_what_it_reads(tiny_shared: Workspace, run: Run) -> None:
    one, same, other = (drawn_readings(tiny_shared, run, num_rows=30, seed=seed) for seed in (1, 1, 2))

    assert one.instances.tolist() == same.instances.tolist() != other.instances.tolist()
    assert (len(one.instances), one.num_readings) == (30, 160)
    assert len(set(zip(one.steps.tolist(), one.positions.tolist(), strict=True))) == 30
    plan = plan_base(tiny_shared, run, num_rows=30, seed=1)
    assert plan["rows"] == len(set(one.instances.tolist()))
    assert plan["tokens"] == plan["rows"] * 64
    assert plan["read"] == sum(file.num_bytes for file in run.files)  # a block of each is checked whole
    assert plan_base(tiny_shared, run, num_rows=30, seed=1, verify=False)["read"] == plan["tokens"] * 2


def test_readings_are_those_of_the_order(tiny_shared: Workspace, run: Run, tiny_source: Path) -> None:
    raw = {(reading.step, reading.instance) for reading in RawRun(tiny_source).readings}

    everything = drawn_readings(tiny_shared, run)
    early = drawn_readings(tiny_shared, run, before_step=6, without=[50])

    assert set(zip(everything.steps.tolist(), everything.instances.tolist(), strict=True)) == raw
    assert set(zip(early.steps.tolist(), early.instances.tolist(), strict=True)) == {
        (step, instance) for step, instance in raw if step < 6 and instance != 50
    }
    assert early.num_readings == 40


def test_nothing_to_compare_with_is_said(tiny_shared: Workspace, run: Run) -> None:
    with pytest.raises(InvalidRange, match="tiny read nothing before step 1 to compare with"):
        base_of_run(tiny_shared, run, before_step=1)
    with pytest.raises(InvalidRange, match="besides the 110 instances in question"):
        base_of_run(tiny_shared, run, without=range(110))
    with pytest.raises(UnknownInstance):
        base_of_run(tiny_shared, run, num_rows=5).describe([110], np.zeros((1, 64), dtype=np.int64), 3)
