"""Faults planted before and after a run is added. `python -m tests.benchmarks.planted_faults` plants thousands."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import CorruptFile, OrderMismatch
from data_index.registration import add
from data_index.seal import broken_seals
from data_index.text import load_tokenizer
from data_index.workspace import Workspace
from forensics.soundness import audit
from forensics.tidying import remove
from tests.attacks.planted import (
    INSTANCE_RECORD,
    LOSS,
    TOKEN_RECORD,
    Planted,
    subjects,
    write_provenance,
)
from tests.attacks.sealed import MISSED, plant_after
from tests.benchmarks.planted_faults import campaign

Found = list[tuple[str, str, str, Planted]]


# What each witness alone cannot but refuse.
SPEAKS_OF = {
    ("OLMo-core", TOKEN_RECORD): "token file: another file of the size",
    ("OLMo-core", INSTANCE_RECORD): "config: seed",
    ("OLMo-core", "global indices"): "config: seed",
    ("OLMo-core", "dataset fingerprint, loader state"): "token file: file extended",
    ("OLMo-core", "provenance"): "token file: another file of the size",
    ("OLMo-core", LOSS): "token file: another file of the size",
    ("OLMo-core, packed", "packing cache"): "token file: another file of the size",
    ("OLMo", "per-rank indices"): "config: seed",
    ("OLMo", "global indices"): "config: seed",
    ("OLMo", "loader position"): "config: batch size",
    ("native", "stated hashes"): "token file: a bit of a token",
}


@pytest.fixture(scope="module")
def planted(tiny_source: Path) -> Found:
    """Some faults in each run with each of its witnesses, and those that they speak of."""
    return list(campaign(subjects(tiny_source), 37, always=SPEAKS_OF))


def test_no_wrong_batch_is_exact(planted: Found) -> None:
    assert len(planted) >= 37
    assert [found for found in planted if found[3].outcome == "exact"] == []


def test_where_nothing_contradicts_wrong_data_the_missing_witness_is_named(planted: Found) -> None:
    derived = [found for found in planted if found[3].outcome == "derived"]

    assert derived
    assert [found for found in derived if not found[3].missing] == []


@pytest.mark.parametrize(("name", "witness"), SPEAKS_OF)
def test_every_witness_refuses_what_it_speaks_of(name: str, witness: str, planted: Found) -> None:
    found = next(found for *of, found in planted if of == [name, witness, SPEAKS_OF[name, witness]])

    assert found.outcome == "refused"
    assert found.said.startswith(("OrderMismatch", "CorruptFile: "))


def test_a_record_of_token_ids_refuses_all_that_it_speaks_of(planted: Found) -> None:
    """What it does not speak of are steps that were never recorded: OLMo-core's record ends at step 25."""
    let_pass = [found for _, witness, _, found in planted if witness == TOKEN_RECORD and found.outcome == "derived"]

    assert all(min(found.wrong) > 25 for found in let_pass)


@pytest.fixture(scope="module")
def after(tiny_source: Path) -> Iterator[list]:
    chosen = ("native", "OLMo-core", "GPT-NeoX", "Amber")
    there = {name: subject for name, subject in subjects(tiny_source).items() if name in chosen}
    yield list(plant_after(there, 60))


def test_every_fault_after_a_run_was_added_is_caught(after: list) -> None:
    assert len(after) >= 60
    assert [found for found in after if found[2].first == MISSED or not found[2].audited] == []


# --- the seal --------------------------------------------------------------------------------------------------------


def test_a_changed_record_of_a_run_is_noticed_when_it_is_opened(tiny: Workspace) -> None:
    path = tiny.home("tiny") / "run.toml"
    whole = path.read_text()
    path.write_text(whole.replace("num_steps = 14", "num_steps = 13"))

    with pytest.raises(
        CorruptFile, match="run.toml was changed since tiny was added .*: restore the file, or forensics"
    ):
        tiny.run("tiny")
    failed = audit("tiny", workspace=tiny).failed
    assert ("run.toml", "sealed") in [(row["artifact"], row["check"]) for row in failed]

    path.write_text(whole)
    assert tiny.run("tiny").last_step == 20


def test_a_run_with_a_broken_seal_can_be_removed(tiny: Workspace) -> None:
    (tiny.home("tiny") / "run.toml").write_text((tiny.home("tiny") / "run.toml").read_text() + "\n")

    assert any("deleted" in line for line in remove("tiny", confirmed=True, workspace=tiny))
    assert tiny.run_names() == []


def test_what_is_learned_later_breaks_no_seal(tiny: Workspace) -> None:
    assert audit("tiny", workspace=tiny).failed == []
    assert audit("tiny", deep=True, workspace=tiny).failed == []
    assert list(broken_seals(tiny.home("tiny"))) == []


def test_a_run_of_an_earlier_version_opens_and_is_said_to_be_unsealed(tiny: Workspace) -> None:
    (tiny.home("tiny") / "seal.json").unlink()

    assert tiny.run("tiny").trust.level == "exact"
    rows = {row["artifact"]: row for row in audit("tiny", workspace=tiny).rows if row["check"] == "sealed"}
    assert (rows["seal.json"]["result"], len(rows)) == ("not known", 1)
    assert "sealed nothing: add it again" in rows["seal.json"]["detail"]


def test_another_tokenizer_is_refused_when_it_is_loaded(tiny: Workspace, tiny_copy: Path) -> None:
    load_tokenizer(tiny.run("tiny"))
    path = tiny_copy / "tokenizer.json"
    path.write_text(path.read_text() + "\n")

    with pytest.raises(CorruptFile, match="tokenizer.json is not the file that it was"):
        load_tokenizer(tiny.run("tiny"))


def test_a_native_run_is_held_to_the_tokenizer_that_it_states(tiny_copy: Path, workspace: Workspace) -> None:
    path = tiny_copy / "tokenizer.json"
    path.write_text(path.read_text() + "\n")

    with pytest.raises(CorruptFile, match="tokenizer.json is not the file that it was"):
        add(tiny_copy, workspace=workspace)
    assert workspace.run_names() == []


def test_a_damaged_table_is_named(tiny: Workspace) -> None:
    (path,) = (tiny.home("tiny") / "documents").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(CorruptFile, match=f"{path.name} is named by its content, which has sha256"):
        tiny.learned_files(tiny.home("tiny"), "documents")


def test_a_native_run_is_not_exact_because_it_says_so(tiny_copy: Path, workspace: Workspace) -> None:
    for path in (tiny_copy / "consumed").iterdir():
        path.unlink()
    path = tiny_copy / "run.toml"
    path.write_text(path.read_text().replace('level = "derived"', 'level = "exact"').replace("missing =", "# "))

    trust = add(tiny_copy, workspace=workspace).trust
    assert (trust.level, trust.missing) == ("derived", "a record of the batches that were consumed")


# --- provenance ------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(core_copy: Path) -> Path:
    """The OLMo-core run with provenance, and no other witness of its tokens."""
    (core_copy / "metrics.jsonl").unlink()
    write_provenance(core_copy.parent / "data", 0)
    return core_copy


def test_provenance_that_fits_is_a_witness(listed: Path, workspace: Workspace) -> None:
    trust = add(listed, workspace=workspace).trust

    assert trust.level == "derived"
    assert trust.witness.endswith("provenance of 69 documents tiles 3 of 3 token files, each with an end token")


def of_part(folder: Path, change: str) -> None:
    path = folder.parent / "data" / "part-01-00000.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    match change:
        case "a border":
            rows[3] = ",".join(str(int(n) + (place == 1)) for place, n in enumerate(rows[3].split(",")[:2])) + ",x,y,1"
        case "the last row gone":
            rows.pop()
        case "an empty document":
            start = rows[0].split(",")[0]
            rows.insert(0, f"{start},{start},x,y,1")
        case "no number":
            rows[2] = "x" + rows[2]
        case "a row without end":
            rows[2] += "x" * 2**16
    path.write_bytes(gzip.compress("".join(f"{row}\n" for row in rows).encode())[: -9 if change == "cut" else None])


PROVENANCE = {
    "a border": (CorruptFile, r"part-01-00000.csv.gz row 5 is tokens .*, which overlaps"),
    "the last row gone": (CorruptFile, "ends with row .* at token .*has 9,896"),
    "an empty document": (CorruptFile, "row 1 is tokens 0..0, which is no document"),
    "no number": (CorruptFile, "part-01-00000.csv.gz row 3 has .* where a number belongs"),
    "a row without end": (CorruptFile, "row 3 has "),
    "cut": (CorruptFile, "is not whole provenance"),
}


@pytest.mark.parametrize("change", PROVENANCE)
def test_provenance_that_does_not_fit_is_refused(change: str, listed: Path, workspace: Workspace) -> None:
    error, said = PROVENANCE[change]
    of_part(listed, change)

    with pytest.raises(error, match=said):
        add(listed, workspace=workspace)
    assert workspace.run_names() == []


def test_an_end_token_that_was_changed_is_found(listed: Path, workspace: Workspace) -> None:
    path = listed.parent / "data" / "part-02-00000.npy"
    tokens = np.fromfile(path, "<u2")
    tokens[np.flatnonzero(tokens == 0)[7]] = 9
    tokens.tofile(path)

    with pytest.raises(OrderMismatch, match="row 8 ends before token .*part-02-00000.npy is not the end token 0"):
        add(listed, workspace=workspace)
