"""The audit of a run on the hub: from its listing and a few stretches of each checkpoint; deep, from everything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from data_index.errors import TooMuchToFetch
from data_index.registration import add
from data_index.remote import http, hub_files
from data_index.workspace import Workspace
from forensics import audit
from forensics.soundness import AuditResult
from tests.forensics.test_cli import answer, forensics
from tests.servers import faults
from tests.servers.fake_hub import FakeHub
from tests.servers.tiny_neox import DATA_REPO, MODULES, REPO, SAVED, VOCABULARY, TinyRun, train_tokenizer

Files = dict[int, dict[str, bytes]]  # by step


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    hub_files._files_at.cache_clear()


def published(hub: FakeHub, tiny: TinyRun, workspace: Workspace, change: Callable[[Files], None]) -> str:
    """The tiny run as a repository of its own, altered before it was published; its name in the workspace."""
    files = {s: {p.name: p.read_bytes() for p in folder.iterdir()} for s, folder in tiny.checkpoints.items()}
    for step in files:
        files[step]["tokenizer.json"] = tiny.tokenizer.read_bytes()
    change(files)
    hub.add_repo("lab/altered", {f"step{s}": content for s, content in files.items()} | {"main": files[SAVED[-1]]})
    settings = {"seq_length": 64, "train_iters": 64, "train_batch_size": 8}
    told = {"optimizer": {"type": "Adam", "params": {"lr": 0.006, "betas": [0.9, 0.95]}}, "min_lr": 0.0006}
    schedule = {"lr_decay_style": "cosine", "warmup": 0.1, "lr_decay_iters": 64, "gradient_clipping": 1.0}
    add(
        "lab/altered",
        name="altered",
        data=f"hub:datasets/{DATA_REPO}",
        settings=settings | told | schedule,
        workspace=workspace,
    )
    return "altered"


def failures(result: AuditResult) -> set[tuple[str, int]]:
    return {(row["check"], step) for row in result.failed for step in row["steps"] or [row["step"]]}


def test_an_honest_run_passes_and_little_is_fetched(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    model = (tiny_neox.checkpoints[8] / "model.safetensors").stat().st_size
    before = fake_hub.cdn.body_bytes

    result = audit(name, workspace=workspace)

    assert result.failed == []
    (equal,) = [row for row in result.rows if row["check"] == "equal bytes" and row["result"] != "ok"]
    assert (equal["result"], equal["steps"]) == ("expected", [0, 1])  # the first update's learning rate is 0
    assert fake_hub.cdn.body_bytes - before < 0.5 * model * len(SAVED)  # a toy: stretches are much of it
    again = fake_hub.cdn.body_bytes
    audit(name, workspace=workspace)
    assert fake_hub.cdn.body_bytes == again


def test_every_artifact_has_its_size_and_the_day_it_was_looked_for(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)

    rows = {row["artifact"]: row for row in audit(name, workspace=workspace).rows if row["check"] == "available"}

    file = rows["checkpoint 16/model.safetensors"]
    assert file["num_bytes"] == (tiny_neox.checkpoints[16] / "model.safetensors").stat().st_size
    assert file["checked_at"].startswith("20")
    assert rows["document-00001-of-00002.bin"]["num_bytes"] == 22_222


def model_of(files: Files, step: int) -> bytes:
    return files[step]["model.safetensors"]


def swap(files: Files) -> None:
    files[8], files[48] = files[48], files[8]


def duplicate(files: Files) -> None:
    files[32] = dict(files[16])


def stranger(files: Files) -> None:
    torch.manual_seed(5)
    tensors = {n: torch.randn(t.shape) * 0.02 + (t.ndim == 1) for n, t in _load(model_of(files, 16)).items()}
    files[16]["model.safetensors"] = save(tensors, metadata={"format": "pt"})


def cut(files: Files) -> None:
    files[32]["model.safetensors"] = model_of(files, 32)[:-4000]


def _load(content: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(content)


PLANTED = {
    "two swapped": (swap, {("continuity", 8), ("continuity", 48)}),
    "one duplicated": (duplicate, {("equal bytes", 16), ("equal bytes", 32)}),  # side by side: whose, cannot be told
    "one of another run": (stranger, {("continuity", 16)}),
    "one truncated": (cut, {("reads", 32)}),
}


@pytest.mark.parametrize("deep", [False, True], ids=["listing and stretches", "deep"])
@pytest.mark.parametrize(("change", "found"), PLANTED.values(), ids=PLANTED)
def test_what_was_published_wrongly_is_named(
    change: Callable[[Files], None],
    found: set[tuple[str, int]],
    deep: bool,
    fake_hub: FakeHub,
    tiny_neox: TinyRun,
    workspace: Workspace,
) -> None:
    name = published(fake_hub, tiny_neox, workspace, change)

    named = failures(audit(name, deep=deep, workspace=workspace))

    assert found <= named
    assert {step for _, step in named} == {step for _, step in found}


def test_content_that_is_not_what_the_publisher_states_is_named(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    """One bit, of the right size: only the stated hash tells."""
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    size = (tiny_neox.checkpoints[16] / "model.safetensors").stat().st_size
    path = fake_hub.cdn_path("lab/altered", "step16", "model.safetensors")
    fake_hub.cdn.plant(path, faults.WrongContent(at=size - 3), forever=True)

    result = audit(name, deep=True, workspace=workspace)

    assert {step for _, step in failures(result)} == {16}
    assert any("as its publisher states" in row["detail"] for row in result.failed)


def test_a_wrong_tokenizer_is_named(fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace) -> None:
    import sysconfig

    texts = [(Path(sysconfig.get_path("stdlib")) / name).read_text() for name in ("turtle.py", "pdb.py")]
    other = train_tokenizer([text.upper() for text in texts], VOCABULARY).to_str().encode()

    def change(files: Files) -> None:
        for step in files:
            files[step]["tokenizer.json"] = other

    name = published(fake_hub, tiny_neox, workspace, change)

    result = audit(name, workspace=workspace)

    assert [(row["artifact"], row["check"]) for row in result.failed] == [("tokenizer", "round trip")]
    assert MODULES  # the texts of the right one


def test_a_checkpoint_that_is_gone_is_named_and_the_others_audited(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    commit = fake_hub.repo("lab/altered").commit_of("step8")
    fake_hub.plant(f"/api/models/lab/altered/tree/{commit}", faults.NotFound("RevisionNotFound"), forever=True)
    hub_files._files_at.cache_clear()

    result = audit(name, workspace=workspace)

    assert {step for _, step in failures(result)} == {8}
    assert sum(row["check"] == "reads" and row["result"] == "ok" for row in result.rows) == len(SAVED) - 1


def test_a_revision_that_is_gone_or_names_another_commit_is_named(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    """The list of a commit's files is kept; whether the hub still has it is asked each time."""
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    assert audit(name, workspace=workspace).failed == []
    repo = fake_hub.repo("lab/altered")
    repo.put("step4", {"model.safetensors": b"another"})
    del repo.branches["step8"]

    result = audit(name, workspace=workspace)

    assert failures(result) == {("revision", 4), ("revision", 8)}
    said = {row["step"]: row["detail"] for row in result.failed}
    assert "names another commit now" in said[4] and "has no revision step8 any more" in said[8]


def test_offline_the_audit_says_when_it_was_listed(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    audit(name, workspace=workspace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    rows = [row for row in audit(name, workspace=workspace).rows if row["check"] == "revision"]

    assert {row["result"] for row in rows} == {"not known"} and all("listed on 20" in row["detail"] for row in rows)


def test_a_deep_audit_asks_before_it_fetches_much(fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace) -> None:
    name = published(fake_hub, tiny_neox, workspace, lambda files: None)
    sent = fake_hub.cdn.body_bytes
    model = (tiny_neox.checkpoints[8] / "model.safetensors").stat().st_size

    planned = answer(workspace, "audit", name, "--deep", "--plan")

    assert planned["fetch_bytes"] == model * (len(SAVED) - 1) + 66_560  # steps 0 and 1 are one file
    with pytest.raises(TooMuchToFetch, match="a deep audit of altered would fetch"):
        audit(name, deep=True, max_fetch=1_000_000, workspace=workspace)
    assert fake_hub.cdn.body_bytes == sent
    audit(name, deep=True, workspace=workspace)
    assert planned["fetch_bytes"] <= fake_hub.cdn.body_bytes - sent < 1.05 * planned["fetch_bytes"]


def test_the_command_draws_it_and_says_how_it_ended(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace
) -> None:
    name = published(fake_hub, tiny_neox, workspace, swap)

    done = forensics(workspace, "audit", name)

    assert done.returncode == 1
    assert "steps 8 and 48 hold each other's weights" in done.stderr
    for ending in (".png", ".html"):
        assert (workspace.folder / "findings" / f"audit-{name}{ending}").stat().st_size > 10_000


def test_stretches_are_the_same_places_in_every_checkpoint(tiny_neox: TinyRun) -> None:
    from forensics.weight_samples import STRETCH_ELEMENTS, STRETCHES, sampled_places

    shapes = {n: tuple(t.shape) for n, t in sorted(load_file(tiny_neox.checkpoints[8] / "model.safetensors").items())}
    large = {f"layers.{n}.weight": (4096, 4096) for n in range(100)} | {"norm": (4096,)}

    for given in (shapes, large):
        places = sampled_places(given, far=True)
        assert places.keys() <= given.keys() and len(places) <= STRETCHES
        for name, at in places.items():
            assert len(at) <= STRETCH_ELEMENTS and (np.diff(at) == 1).all()
            assert 0 <= at[0] and at[-1] < np.prod(given[name])
    assert sum(map(len, sampled_places(large, far=True).values())) == STRETCHES * STRETCH_ELEMENTS


def test_a_downloaded_folder_audits_like_the_hub(
    fake_hub: FakeHub, tiny_neox: TinyRun, workspace: Workspace, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_neox.folder, tmp_path / "copy"))
    add(folder, name="near", workspace=workspace)
    far = audit(published(fake_hub, tiny_neox, workspace, lambda files: None), deep=True, workspace=workspace)

    near = audit("near", deep=True, workspace=workspace)

    def curve(result: AuditResult) -> list[tuple[int | None, str]]:
        return [(row["step"], row["detail"]) for row in result.rows if row["check"] == "continuity"]

    assert near.failed == far.failed == []
    assert curve(near) == curve(far)
    assert REPO  # the same run is there honestly
