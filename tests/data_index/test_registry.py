"""What the catalog says of released runs, and that it says nothing without a source."""

import re

import pytest

from data_index.catalog_file import EVENT_KINDS, ISSUE_KINDS, parse_family
from data_index.errors import CorruptFile, UnknownRun
from data_index.registry import (
    Family,
    ReleasedRun,
    events_of,
    families,
    find_family,
    find_run,
    issues_of,
    released_runs,
)

FAMILY = """
family = "small"
title = "Small"
publisher = "Someone"

[sources]
card = "model card of someone/small"

[defaults]
order = { value = "derived", source = "card" }
replay = { value = "exact", source = "card" }

[[runs]]
name = "small-1"
hub = { value = "someone/Small", source = "card" }

[[issues]]
runs = ["small-*"]
kind = "data"
first_step = 10
last_step = 20
listed_steps = [3]
text = "damaged"
source = "card"
"""


def changed(old: str, new: str) -> str:
    assert old in FAMILY
    return FAMILY.replace(old, new)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_fact_issue_and_event_names_a_source_that_a_stranger_can_follow(family: Family) -> None:
    """A repository's file at a commit, an issue's number, a model card, a place on the hub, or a file of ours."""
    followable = re.compile(
        r"@ (tag )?\w|#\d|model cards? of |commit |v1\.0|hub repository |Hugging Face hub|paper|of this toolkit|"
        r"as third parties counted"
    )
    cited = [fact.source for run in family.runs for fact in (*run.facts.values(), *run.settings.values())]
    cited += [told.source for told in (*family.issues, *family.events)]

    assert len(cited) > 5
    assert [source for source in cited if not followable.search(source)] == []
    assert set(cited) == set(family.sources.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed('"exact", source = "card"', '"exact"'), "small.toml has small-1.replay, which names no source"),
        (changed('"exact", source = "card"', '"exact", source = "blog"'), "replay, whose source 'blog' is not listed"),
        (changed('card = "model card of someone/small"', 'card = ""'), "source 'card' is not listed"),
        (changed("[defaults]", 'paper = "a paper"\n[defaults]'), "has the source paper, which nothing cites"),
        (changed('text = "damaged"\nsource = "card"', 'text = "damaged"'), "has damaged, which names no source"),
        (changed('{ value = "exact", source = "card" }', '"exact"'), "small-1.replay, which has no value"),
        (changed('replay = { value = "exact", source = "card" }', ""), "has small-1 without replay"),
        (changed('"exact"', '"perfect"'), "replay = 'perfect': one of exact, approximate, refused"),
        (changed('hub = { value = "someone/Small"', "hub = { value = 7"), "small-1.hub = 7, which is not what"),
        (changed("hub =", "last_step ="), "small-1.last_step = 'someone/Small', which is not what"),
        (changed("hub =", "hubb ="), "small-1.hubb, which is no field of a run"),
        (changed("hub =", "hub_revision ="), "small-1.hub_revision, which has no group called step"),
        (changed('hub = { value = "someone/Small"', 'hub_revision = { value = "step("'), "no regular expression"),
        (changed('name = "small-1"', 'name = "Small 1"'), "the name 'Small 1'"),
        (changed('kind = "data"', 'kind = "bad"'), "has the kind 'bad': one of other_weights, equal_weights"),
        (changed('["small-*"]', '["large-*"]'), "has 'large-\\*', which is no run of the family"),
        (changed("first_step", "from_step"), "has issues with from_step, which is not known there"),
        (FAMILY + '[[runs]]\nname = "small-1"\n', "has two runs called small-1"),
        (changed('family = "small"', ""), "lacks or misstates 'family'"),
        ("runs = [", "small.toml lacks or misstates"),
    ],
)
def test_a_family_file_that_says_too_little_is_refused(content: str, said: str) -> None:
    with pytest.raises(CorruptFile, match=said):
        parse_family(content, "small.toml")


def test_a_family_file_is_read_as_it_stands() -> None:
    family = parse_family(FAMILY, "small.toml")
    issue, run = family.issues[0], family.runs[0]

    assert (run.name, run.family, run.value("hub"), run.value("order")) == (
        "small-1",
        "small",
        "someone/Small",
        "derived",
    )
    assert run.facts["hub"].source == "model card of someone/small"
    assert [step for step in range(25) if issue.concerns_step(step)] == [3, *range(10, 21)]


# --- finding ---------------------------------------------------------------------------------------------------------


def test_runs_are_found_by_name_and_by_repository_in_any_case() -> None:
    assert find_run("pythia-160m").value("hub") == "EleutherAI/pythia-160m"
    assert find_run("eleutherai/Pythia-160M").name == "pythia-160m"
    assert find_run("allenai/OLMo-2-1124-7B").name == "olmo-2-7b"  # stage 1, not an ingredient
    assert find_family("Pythia").title == "Pythia"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownRun, match=r"'pythia-161m' .the nearest: pythia-1.*; list all: forensics catalog"):
        find_run("pythia-161m")
    with pytest.raises(UnknownRun, match=r"'zzz' .list all: forensics catalog"):
        find_family("zzz")


def test_an_empty_name_is_no_run() -> None:
    """Runs without a repository are not found by the name of none."""
    with pytest.raises(UnknownRun, match="no released run or family '' "):
        find_run("")


def test_names_do_not_collide() -> None:
    """`forensics catalog NAME` takes a family or a run."""
    names = [family.name for family in families()] + [run.name for run in released_runs()]

    assert len(names) == len(set(names))
    for run in released_runs():
        parents = re.findall(r"([a-z0-9._-]+)@\d+", run.value("parent", ""))
        assert all(find_run(parent) for parent in parents), run.name


def test_every_kind_that_is_documented_is_used() -> None:
    assert {issue.kind for family in families() for issue in family.issues} == set(ISSUE_KINDS)
    assert {event.kind for family in families() for event in family.events} == set(EVENT_KINDS)


# --- what is known ---------------------------------------------------------------------------------------------------


def test_the_catalog_has_every_family_and_size() -> None:
    names = {run.name for run in released_runs()}
    sizes = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")

    assert {f"pythia-{size}{kind}" for size in sizes for kind in ("", "-deduped", "-v0", "-deduped-v0")} <= names
    assert {"pythia-14m", "pythia-31m", "pythia-160m-0.5mtokbs", "pythia-gender-intervention"} <= names
    assert sum("-seed" in name for name in names) == 45 + 4  # nine seeds of five sizes, and the decoupled ones
    assert {"olmo-1b", "olmo-7b", "olmo-7b-twin-2t", "olmo-7b-0424", "olmo-7b-0724", "olmoe-1b-7b"} <= names
    assert {f"olmo-2-{size}" for size in ("1b", "7b", "13b", "32b")} <= names
    assert {"olmo-2-13b-stage2-4", "olmo-2-13b-soup", "olmo-2-32b-soup", "olmo-2-1b-stage2-3"} <= names
    assert {"olmo-3-7b", "olmo-3-7b-stage3", "olmo-3-32b", "olmo-3-32b-stage2-soup", "olmo-hybrid-7b"} <= names
    assert {"amber", "crystalcoder", "k2", "k2-spike-1", "k2-spike-2", "bloom-176b", "opt-175b", "opt-6.7b"} <= names
    assert {"smollm1-135m", "smollm2-1.7b", "smollm3-3b", "datadecide-suite"} <= names
    assert {"marin-8b", "marin-32b", "apertus-8b", "apertus-70b"} <= names


def test_pythias_trainer_is_told_what_its_own_files_get_wrong() -> None:
    """No yml gives the batch size of 6.9B and 12B."""
    for run in find_family("pythia").runs:
        if run.settings.keys() > {"seq_length"}:
            told = {name: fact.value for name, fact in run.settings.items()}
            assert (told["train_iters"], told["train_batch_size"], told["seq_length"]) == (143000, 1024, 2048)
            assert told["seed"] == 1234
    assert find_run("pythia-12b").settings["optimizer"].value == {
        "type": "Adam",
        "params": {"lr": 1.2e-4, "betas": [0.9, 0.95], "eps": 1e-8},
    }
    assert "optimizer" not in find_run("pythia-1b").settings  # two published rates contradict each other


def test_learning_rates_and_minima_of_pythia_belong_together() -> None:
    for run in find_family("pythia").runs:
        if "optimizer" in run.settings:
            rate = run.settings["optimizer"].value["params"]["lr"]
            assert run.value("learning_rate") == rate
            assert run.settings["min_lr"].value == pytest.approx(rate / 10, rel=1e-12)


def test_standard_and_deduplicated_models_have_their_own_data() -> None:
    assert find_run("pythia-1.4b").value("data") == ["hub:datasets/EleutherAI/pile-standard-pythia-preshuffled"]
    assert "hub:datasets/EleutherAI/pile-deduped-pythia-preshuffled" in find_run("pythia-1.4b-deduped").value("data")


@pytest.mark.parametrize(
    ("run", "revision", "step"),
    [
        ("pythia-160m", "step1000", 1000),
        ("pythia-160m", "main", None),
        ("olmo-2-7b", "stage1-step928646-tokens3896B", 928646),
        ("olmo-2-7b", "stage2-ingredient1-step1000-tokens5B", None),
        ("olmo-2-7b-stage2-2", "stage2-ingredient2-step11931-tokens50B", 11931),
        ("olmo-3-32b-stage2-1", "stage2-ingredient1-step23842", 23842),
        ("bloom-176b", "global_step5000", 5000),
        ("datadecide-suite", "step69369-seed-default", 69369),
        ("smollm3-3b", "stage2-step-3440000", 3440000),
        ("k2-spike-1", "spike_ckpt_160", 941 * 160),
        ("amber", "ckpt_000", 762),  # after the first chunk
        ("amber", "ckpt_359", 274320),
    ],
)
def test_revisions_say_steps(run: str, revision: str, step: int | None) -> None:
    assert find_run(run).step_of_revision(revision) == step


def test_a_run_without_revisions_finds_no_step_in_them() -> None:
    run = ReleasedRun(name="bare", family="none", facts={})

    assert run.step_of_revision("step1000") is None


@pytest.mark.parametrize("run", [run for run in released_runs() if run.value("tokens_per_step")], ids=lambda r: r.name)
def test_counts_of_a_run_agree(run: ReleasedRun) -> None:
    per_step, rows, length = (run.value(n) for n in ("tokens_per_step", "instances_per_batch", "sequence_length"))
    if isinstance(rows, int) and length:
        assert per_step == rows * length
    if run.value("tokens") and run.name != "olmo-1b":
        assert run.value("tokens") == run.value("last_step") * per_step


@pytest.mark.parametrize(
    ("run", "step", "kind"),
    [
        ("pythia-2.8b", 65000, "other_weights"),
        ("pythia-12b", 50000, "other_weights"),
        ("pythia-12b", 58000, "other_weights"),
        ("pythia-12b-deduped", 32000, "other_weights"),
        ("pythia-70m", 1, "expected_equal"),
        ("pythia-160m-weight-seed1", 1000, "different_init"),
        ("olmo-2-7b", 175000, "equal_weights"),
        ("olmo-2-7b", 928646, "missing_steps"),
        ("olmo-2-13b-stage2-3", 11931, "mislabelled_listing"),
        ("olmo-7b", 557000, "mislabelled_listing"),
        ("olmo-3-7b", 1000, "dead_links"),
        ("olmo-3-32b", 23000, "dead_links"),
        ("olmo-hybrid-7b-stage3", 975, "trainer_quirk"),
    ],
)
def test_a_checkpoint_carries_its_known_issue(run: str, step: int, kind: str) -> None:
    assert kind in {issue.kind for issue in issues_of(run, step)}


def test_a_checkpoint_carries_no_other_issue() -> None:
    assert issues_of("pythia-12b", 51000) == []
    assert issues_of("pythia-2.8b", 66000) == []
    assert "different_init" in {issue.kind for issue in issues_of("pythia-12b")}
    assert "different_init" not in {issue.kind for issue in issues_of("pythia-70m")}
    assert "other_weights" not in {issue.kind for issue in issues_of("pythia-2.8b-v0")}


def test_checkpoints_that_two_lists_share_are_not_expected_to_equal_each_other() -> None:
    kinds = {issue.kind for issue in issues_of("olmo-7b-0424")}

    assert "shared_checkpoints" in kinds and "expected_equal" not in kinds
    assert issues_of("olmo-7b-0424", 100_000) == []
    assert {issue.kind for issue in issues_of("olmo-7b-0424", 489_000)} == {"mislabelled_listing"}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("pythia-1b", "the README says 3e-4, models/1B/\\*.yml and gpt-neox configs/pythia/1B.yml say 2.5e-4"),
        ("pythia-6.9b", "gives 512 rows a step"),
        ("pythia-410m-v0", "step1000 is the real step 500"),
        ("pythia-2.8b-deduped", "about 28 % of all copies are never read"),
        ("olmo-1b", "are lost, say the maintainers"),
        ("olmo-7b-0724", "is the list of the first OLMo-7B"),
        ("olmo-2-13b", "the yaml says learning rate 3e-4"),
        ("olmo-7b-0724", "no checkpoint between steps 142000 and 200000"),
        ("olmo-2-13b", "a folder that ends in -zlossfix"),
        ("olmo-2-32b", "what the skip rule remembers is in no checkpoint"),
        ("olmo-3-7b-stage3", "6,291,456,000 tokens, .* should say 6,034,160,615,424"),
        ("olmo-3-32b-stage2-2", "where stage 2 was started from step 656000"),
        ("pythia-1.4b", "only for the 83 idxmaps shards"),
        ("opt-125m", "of 2.7B, 6.7B and 13B only"),
        ("bloom-176b", "These are experiments, and no restarts of the run"),
        ("k2", "two of them are moved to its end, 160 and 186"),
    ],
)
def test_traps_of_the_published_material_are_named(run: str, said: str) -> None:
    assert any(re.search(said, issue.text) for issue in issues_of(run))


def test_published_spikes_and_restarts_are_labelled() -> None:
    k2 = {(event.kind, event.step) for event in events_of(find_run("k2"))}
    bloom = {(event.kind, event.step) for event in events_of(find_run("bloom-176b"))}

    assert k2 == {(kind, 941 * number) for kind in ("spike", "restart") for number in (160, 186)}
    assert {(kind, step) for kind, step in bloom if step} == {
        ("spike", 31219),
        *(("restart", step) for step in (17235, 20448, 26343, 26345, 94767)),
    }
    assert {event.kind for event in events_of(find_run("opt-175b"))} == {"spike", "restart"}
    assert [event.kind for event in events_of(find_run("k2-spike-2"))] == ["spike"]
    assert events_of(find_run("amber")) == []
