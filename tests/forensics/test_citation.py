"""What is cited is what is known: the toolkit, a run's record, a finding's hash; the catalog's facts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from data_index.errors import UnknownRun
from data_index.files import sha256_of_file
from data_index.workspace import Workspace
from forensics.citation import AUTHORS, LICENCE, TITLE, cite, entry_of
from forensics.finding import keep_finding
from tests.forensics.packs import finding
from tests.forensics.test_cli import answer, forensics

ROOT = Path(__file__).parents[2]


def test_the_toolkit_is_cited_as_its_files_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    found = cite()

    assert told["authors"] == [{"name": AUTHORS}] == project["authors"]
    assert (told["title"], told["license"]) == (TITLE, LICENCE) and project["license"] == LICENCE
    assert str(told["version"]) == project["version"] and told["cff-version"] == "1.2.0" and "doi" not in told
    assert found.text == (f"{AUTHORS}. {TITLE}, version {project['version']}. {LICENCE}.",)
    assert found.bibtex[0].startswith("@software{checkpoint-forensics,\n  author = {{The Checkpoint Forensics contr")


def test_a_run_is_cited_by_its_record(tiny_shared: Workspace) -> None:
    found = cite("tiny", workspace=tiny_shared)

    assert sha256_of_file(tiny_shared.home("tiny") / "run.toml") in found.text[0] and "steps 1..20" in found.text[0]
    assert len(found.bibtex) == 2 and "the catalog does not know where tiny comes from" in found.notes[0]


def test_of_a_released_run_nothing_is_invented(workspace: Workspace) -> None:
    found = cite("pythia-160m", workspace=workspace)

    assert found.text[0] == "EleutherAI. pythia-160m (Pythia). Hugging Face Hub: EleutherAI/pythia-160m."
    assert "howpublished = {Hugging Face Hub: EleutherAI/pythia-160m}" in found.bibtex[0]
    assert "knows no paper, year or licence" in found.notes[0]
    assert not any(word in found.bibtex[0] for word in ("author", "year", "doi", "licen"))


def test_a_finding_is_cited_by_its_hash_and_command(tiny: Workspace) -> None:
    path = keep_finding(tiny, finding())
    path.write_text(path.read_text().replace('"runs":["tiny"]', '"runs":["tiny","elsewhere"]'))
    found = cite("blame-tiny-8", workspace=tiny)

    assert f"forensics blame tiny 8, with {TITLE} " in found.text[0] and sha256_of_file(path) in found.text[0]
    assert len(found.bibtex) == 3 and any("elsewhere is not here" in note for note in found.notes)


def test_what_no_one_knows_is_said(tiny_shared: Workspace) -> None:
    with pytest.raises(UnknownRun, match="nor is a finding or a released run"):
        cite("nothing", workspace=tiny_shared)


def test_data_cannot_steer_latex() -> None:
    entry = entry_of("misc", "a b,}", {"title": "50% of $x_1 & \\input{x} }", "note": "{Balanced}"})

    assert entry == (
        "@misc{a-b--,\n  title = {50\\% of \\$x\\_1 \\& \\textbackslash()input(x) )},\n  note = {{Balanced}},\n}"
    )


def test_the_command_prints_both_forms(tiny_shared: Workspace) -> None:
    told = answer(tiny_shared, "cite", "tiny")
    printed = forensics(tiny_shared, "cite", "tiny").stdout

    assert set(told) == {"text", "bibtex", "notes"}
    assert all(line in printed for entry in told["bibtex"] for line in entry.split("\n"))
