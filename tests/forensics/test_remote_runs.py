"""Runs that a manifest describes, their token files and checkpoints on a server of loopback."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from data_index.dcp import read_dcp_metadata
from data_index.errors import (
    ChangedFile,
    CorruptFile,
    MissingFile,
    NewerWorkspace,
    TooMuchToFetch,
    Unreachable,
    UnsafeFile,
)
from data_index.orders import epoch_order
from data_index.published.data import with_olmo
from data_index.published.record import Published, read_published
from data_index.registration import add
from data_index.registry import Fact, ReleasedRun
from data_index.remote import connection, http
from data_index.remote.path import RemotePath
from data_index.remote.range_cache import RangeCache
from data_index.workspace import Workspace
from forensics import batch, repeats, replay
from forensics.probe_options import ProbeOptions
from forensics.probing import probe
from forensics.probing_plan import plan_probe
from forensics.repetition import plan_repeats
from replay import device_speed
from replay.weights import read_optimizer, read_tensor, read_weights
from tests.conftest import FIXTURES
from tests.forensics.test_cli import answer, forensics
from tests.servers import faults
from tests.servers.range_server import RangeServer

OLMO, CORE = FIXTURES / "olmo", FIXTURES / "olmo-core" / "main" / "ckpt"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, hub_environment: Path) -> None:
    """And no time is spent on how fast this machine is, which plans say."""
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(device_speed, "matmul_flops", lambda *given, **named: 1e9)


@pytest.fixture
def server(range_server: RangeServer) -> RangeServer:
    """The OLMo fixture's token files and step 10, and OLMo-core's step 10."""
    for root, below in ((OLMO, "data/*.npy"), (OLMO, "run/step10-unsharded/*"), (CORE, "step10/**/*")):
        for path in root.glob(below):
            if path.is_file():
                range_server.files[f"/{root.name}/{path.relative_to(root)}"] = path.read_bytes()
    return range_server


def write_manifest(folder: Path, server: RangeServer, *, sizes: bool = False, extra: str = "") -> Path:
    staged = folder / "step10-unsharded"
    staged.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "train.pt"):
        (staged / name).write_bytes((OLMO / "run" / "step10-unsharded" / name).read_bytes())
    files = "".join(
        f'[[files]]\nname = "data/{path.name}"\nurl = "{server.url(f"/olmo/data/{path.name}")}"\n'
        + (f"num_bytes = {path.stat().st_size}\n" if sizes else "")
        for path in sorted((OLMO / "data").glob("*.npy"))
    )
    manifest = folder / "manifest.toml"
    manifest.write_text(
        'format = "forensics-manifest"\nversion = 1\nname = "far"\nlayout = "olmo"\n'
        f'config = ["step10-unsharded/config.yaml", "step10-unsharded/train.pt"]\n{extra}{files}'
        f'[[checkpoints]]\nstep = 10\nurl = "{server.url("/olmo/run/step10-unsharded")}/"\n'
        'states = ["weights", "optimizer", "trainer"]\n'
    )
    return manifest


@pytest.fixture
def far(server: RangeServer, tmp_path: Path, workspace: Workspace) -> Workspace:
    add(write_manifest(tmp_path / "m", server), workspace=workspace)
    return workspace


@pytest.mark.parametrize("step", [1, 11, 25, 40])
def test_a_far_batch_is_the_near_one_and_fetches_its_rows_alone(
    step: int, far: Workspace, server: RangeServer, core_shared: Workspace
) -> None:
    before = server.body_bytes
    found = batch("far", step, tokens=True, workspace=far)

    near = batch("olmo", step, tokens=True, workspace=core_shared)
    for column in ("step", "instance", "file", "offset", "token_ids"):
        assert found.column(column).to_pylist() == near.column(column).to_pylist()
    needed = 8 * 128 * 2
    assert needed <= server.body_bytes - before <= 1.05 * needed


def test_the_manifest_is_kept_with_the_sizes_that_were_asked_for(
    far: Workspace, server: RangeServer, tmp_path: Path
) -> None:
    kept = far.home("far") / "source" / "manifest.toml"

    sizes = [file["num_bytes"] for file in tomllib.loads(kept.read_text())["files"]]
    assert sizes == [path.stat().st_size for path in sorted((OLMO / "data").glob("*.npy"))]
    assert server.num_requests["HEAD"] == 3 and server.body_bytes == 0


def test_sizes_in_a_manifest_need_no_server(
    server: RangeServer, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    run = add(write_manifest(tmp_path / "m", server, sizes=True), workspace=workspace)

    assert run.num_instances == 250 and not server.log


def test_an_add_that_fails_midway_asks_for_the_other_sizes_next_time(
    server: RangeServer, tmp_path: Path, workspace: Workspace
) -> None:
    manifest = write_manifest(tmp_path / "m", server)
    server.plant("/olmo/data/part-2-00000.npy", faults.ServerError(500), forever=True)
    with pytest.raises(Unreachable, match="part-2"):
        add(manifest, workspace=workspace)
    assert workspace.run_names() == []
    server.heal()
    known = {request.path for request in server.log if request.status == 200}
    asked = len(server.log)

    add(manifest, workspace=workspace)

    assert len(server.log) - asked == 3 - len(known)


def test_the_files_say_where_a_run_comes_from(far: Workspace) -> None:
    (row,) = answer(far, "runs")
    assert row["source"].endswith("manifest.toml")
    rows = answer(far, "sql", "select path from files")
    assert all(row["path"].startswith("http://127.0.0.1") for row in rows)


def test_a_token_file_that_changed_is_told(far: Workspace, server: RangeServer) -> None:
    batch("far", 1, tokens=True, workspace=far)
    for path in list(server.files):
        if path.startswith("/olmo/data"):
            server.files[path] = server.files[path][::-1]

    with pytest.raises(ChangedFile, match="changed"):
        batch("far", 2, tokens=True, workspace=far)
    assert batch("far", 1, tokens=True, workspace=far).num_rows == 8


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_one_tensor_of_a_far_archive_is_read_without_the_rest(far: Workspace, server: RangeServer) -> None:
    checkpoint, near = far.checkpoint(far.run("far"), 10), Workspace(far.folder.parent / "near")
    local = near.checkpoint(add(OLMO, name="near", workspace=near), 10)
    before = server.body_bytes

    tensor = read_tensor(checkpoint, "model.layers.2.mlp.down_proj.weight")

    assert torch.equal(tensor, read_tensor(local, "model.layers.2.mlp.down_proj.weight"))
    whole = len(server.files["/olmo/run/step10-unsharded/model.pt"])
    assert server.body_bytes - before < 0.5 * whole  # a toy's archive is half directory


def test_far_states_are_the_near_ones(far: Workspace) -> None:
    checkpoint, near = far.checkpoint(far.run("far"), 10), Workspace(far.folder.parent / "near")
    local = near.checkpoint(add(OLMO, name="near", workspace=near), 10)

    for one, other in ((read_weights(checkpoint), read_weights(local)),):
        assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    moments, expected = read_optimizer(checkpoint), read_optimizer(local)
    assert all(torch.equal(moments[m][name], expected[m][name]) for m in expected for name in expected[m])


def test_one_tensor_of_a_far_distributed_checkpoint_is_its_items_alone(
    server: RangeServer, tmp_path: Path, workspace: Workspace
) -> None:
    extra = ""
    manifest = write_manifest(tmp_path / "m", server, extra=extra)
    manifest.write_text(
        manifest.read_text()
        + f'[[checkpoints]]\nstep = 11\nurl = "{server.url("/ckpt/step10")}"\nlayout = "olmo_core"\n'
        'states = ["weights", "optimizer", "trainer"]\n'
    )
    checkpoint = workspace.checkpoint(add(manifest, workspace=workspace), 11)
    entry = read_dcp_metadata(CORE / "step10" / "model_and_optim")["model.embeddings.weight"]
    before = server.body_bytes

    tensor = read_tensor(checkpoint, "model.embed_tokens.weight")

    metadata = (CORE / "step10" / "model_and_optim" / ".metadata").stat().st_size
    items = sum(piece.length for piece in entry.pieces)
    assert tuple(tensor.shape) == entry.shape
    assert server.body_bytes - before == metadata + items
    assert items <= 1.05 * tensor.numel() * tensor.itemsize
    assert torch.equal(tensor, read_weights(checkpoint)["model.embed_tokens.weight"])


@pytest.mark.parametrize("names", [["embedding-norms"], ["embedding-norms", "spectra", "norms"]], ids=" ".join)
def test_far_checkpoints_of_both_trainers_are_probed_and_forgotten(
    server: RangeServer, tmp_path: Path, workspace: Workspace, names: list[str]
) -> None:
    """A pickle and a distributed checkpoint; what a plan looked at stays, and nothing that came after it."""
    manifest = write_manifest(tmp_path / "m", server)
    manifest.write_text(
        manifest.read_text()
        + f'[[checkpoints]]\nstep = 11\nurl = "{server.url("/ckpt/step10")}"\nlayout = "olmo_core"\n'
        'states = ["weights", "optimizer", "trainer"]\n'
    )
    run = add(manifest, workspace=workspace)
    options = ProbeOptions(threads=1, device="cpu", forget_fetched=True)
    plan, _ = plan_probe("far", *names, options=options, workspace=workspace)
    before = kept_bytes(workspace)
    found = probe("far", *names, options=options, workspace=workspace)

    assert not found.problems and plan[-1]["bytes_to_read"] == found.num_bytes
    assert all(0 < row["bytes_to_fetch"] <= 1.05 * row["bytes_to_read"] + 100_000 for row in plan[:-1])
    assert kept_bytes(workspace) == before
    for step in (10, 11):
        matrix = read_weights(workspace.checkpoint(run, step))["model.embed_tokens.weight"]
        means = [row["value"] for row in found.rows if row["step"] == step and "mean" in row["metric"]]
        assert any(mean == pytest.approx(matrix.double().norm(dim=1).mean().item(), rel=1e-6) for mean in means)
    assert kept_bytes(workspace) != before


def kept_bytes(workspace: Workspace) -> dict[Path, tuple[tuple[int, int], ...]]:
    """Which stretches of weight files are kept."""
    weights = [path for path in workspace.cache.rglob("bytes") if re.search(r"model\.pt|distcp", str(path.parent))]
    found = {path: RangeCache(path.parent, "").extents() for path in weights}
    return {path: extents for path, extents in found.items() if extents}


def test_a_far_run_is_replayed_like_a_near_one(
    server: RangeServer, tmp_path: Path, workspace: Workspace, core_shared: Workspace
) -> None:
    manifest = write_manifest(tmp_path / "m", server)
    text = manifest.read_text().replace("config = [", 'config = ["step20-unsharded/config.yaml", ')
    (manifest.parent / "step20-unsharded").mkdir()
    config = (OLMO / "run" / "step20-unsharded" / "config.yaml").read_bytes()
    (manifest.parent / "step20-unsharded" / "config.yaml").write_bytes(config)
    manifest.write_text(text)
    add(manifest, workspace=workspace)
    planned = answer(workspace, "replay", "far", "10:12", "--plan")

    far_steps = replay("far", "10:12", workspace=workspace).steps

    assert planned["download"] > 2 * 8 * 128 * 2
    near = replay("olmo", "10:12", workspace=core_shared).steps
    assert [row["loss"] for row in far_steps] == [row["loss"] for row in near]


# --- manifests that are wrong ----------------------------------------------------------------------------------------

WRONG = {
    "no TOML": ("name = ", CorruptFile, "is not TOML"),
    "another file": ("x = 1", CorruptFile, 'does not say format = "forensics-manifest"'),
    "no version": ('format = "forensics-manifest"', CorruptFile, "states no version"),
    "of later": ('format = "forensics-manifest"\nversion = 9', NewerWorkspace, "update it"),
    "odd key": ('format = "forensics-manifest"\nversion = 1\nfile = 1', CorruptFile, "a key 'file'"),
    "no name": ('format = "forensics-manifest"\nversion = 1\nlayout = "olmo"', CorruptFile, "states no name"),
}
HEAD = 'format = "forensics-manifest"\nversion = 1\nname = "x"\nlayout = "olmo"\n'
WRONG_BODIES = {
    "a path": ('[[files]]\nurl = "/etc/passwd"', CorruptFile, "no address"),
    "a file address": ('[[files]]\nurl = "file:///etc/passwd"', CorruptFile, "no address"),
    "a negative size": ('[[files]]\nurl = "http://h/x"\nnum_bytes = -1', CorruptFile, "num_bytes"),
    "no url": ('[[files]]\nname = "x"', CorruptFile, "'url'"),
    "outside": ('config = ["../../secret"]', UnsafeFile, "outside its folder"),
    "absent": ('config = ["config.yaml"]', MissingFile, "is not there"),
    "an odd step": ('[[checkpoints]]\nstep = "1"\nurl = "http://h/x"', CorruptFile, "the step of a checkpoint"),
    "files of another kind": ("files = 3", CorruptFile, "lacks or misstates"),
}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [*WRONG.values(), *((HEAD + body, error, said) for body, error, said in WRONG_BODIES.values())],
    ids=[*WRONG, *WRONG_BODIES],
)
def test_a_wrong_manifest_is_a_clear_error(
    text: str, error: type[Exception], said: str, tmp_path: Path, workspace: Workspace
) -> None:
    (tmp_path / "manifest.toml").write_text(text)

    with pytest.raises(error, match=said):
        add(tmp_path / "manifest.toml", workspace=workspace)
    assert workspace.run_names() == []


def test_a_manifest_that_is_not_there_says_so(workspace: Workspace) -> None:
    done = forensics(workspace, "add", "nowhere/manifest.toml")

    assert done.returncode == 1 and "is not there" in done.stderr


def test_a_thousand_small_rows_are_fetched_side_by_side(range_server: RangeServer, tmp_path: Path) -> None:
    """As a batch of OLMo's: 1,024 rows of 16 KiB, spread over many files."""
    from data_index.remote.ranges import fetch_ranges

    random = np.random.default_rng(0)
    content = random.integers(0, 256, 2**20, dtype=np.uint8).tobytes()
    rows = []
    for number in range(16):
        range_server.files[f"/{number}"] = content
        path = RemotePath(range_server.url(f"/{number}"), tmp_path / "cache", num_bytes=len(content))
        rows += [(path, at * 4096, at * 4096 + 4096) for at in random.choice(256, 64, replace=False).tolist()]

    fetched = fetch_ranges(rows)

    assert 1024 * 4096 <= fetched == range_server.body_bytes <= 1.05 * 1024 * 4096
    assert range_server.num_requests["GET"] < 1024  # neighbours go together
    assert 2 <= range_server.num_connections <= connection.PARALLEL_REQUESTS
    assert all(path.read(start, stop) == content[start:stop] for path, start, stop in rows)


# --- a run whose config and data lie at the addresses that the catalog knows -----------------------------------------


def test_a_released_olmo_run_is_read_from_its_listed_addresses(
    range_server: RangeServer, tmp_path: Path, workspace: Workspace, core_shared: Workspace
) -> None:
    """Its first checkpoint's config names the token files by address; what their servers do not say is asked."""
    config = (OLMO / "run" / "step0-unsharded" / "config.yaml").read_text()
    for path in sorted((OLMO / "data").glob("*.npy")):
        range_server.files[f"/web/{path.name}"] = path.read_bytes()
        config = config.replace(f"- data/{path.name}", f"- {range_server.url(f'/web/{path.name}')}")
    range_server.files["/runs/step0-unsharded/config.yaml"] = config.encode()
    address = range_server.url("/runs/step<N>-unsharded/").replace("%3CN%3E", "<N>")
    release = ReleasedRun(name="toy", family="olmo2", facts={"checkpoints": Fact(value=[address], source="x")})
    bare = Published(name="toy", origin="hub:lab/toy", layout=None, checkpoints=[])

    published = with_olmo(bare, release, workspace.cache, lambda message: None)

    assert published.layout == "olmo" and not published.missing
    home = tmp_path / "home"
    home.mkdir()
    run = read_published(published, "toy", home, None).run
    near = core_shared.run("olmo")
    assert [(file.num_bytes, file.num_instances) for file in run.files] == [
        (file.num_bytes, file.num_instances) for file in near.files
    ]
    assert np.array_equal(epoch_order(run, 1), epoch_order(near, 1))
    assert range_server.num_requests["HEAD"] >= 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "where its config and data were, .* is not there"),
        ("data:\n  paths:\n  - s3://bucket/part-0.npy\n", "not on the web, such as s3://bucket/part-0.npy"),
        ("data:\n  paths:\n  - {url}\n", "where its config and data were"),
    ],
    ids=["no config", "not on the web", "no data"],
)
def test_what_is_missing_of_a_released_olmo_run_is_said(
    config: str | None, said: str, range_server: RangeServer, workspace: Workspace
) -> None:
    if config is not None:
        text = config.replace("{url}", range_server.url("/gone.npy"))
        range_server.files["/runs/step0-unsharded/config.yaml"] = text.encode()
    address = range_server.url("/runs/step<N>-unsharded/").replace("%3CN%3E", "<N>")
    release = ReleasedRun(name="toy", family="olmo2", facts={"checkpoints": Fact(value=[address], source="x")})
    bare = Published(name="toy", origin="hub:lab/toy", layout=None, checkpoints=[])

    published = with_olmo(bare, release, workspace.cache, lambda message: None)

    assert published.layout is None and re.search(said, published.missing)


def test_far_rows_are_compared_like_near_ones_and_fetched_once(
    far: Workspace, server: RangeServer, core_shared: Workspace
) -> None:
    """Of the files only what the steps read; what that is in bytes is said before, and held against the limit."""
    cost = plan_repeats("far", "30:40", of="instances", workspace=far)
    with pytest.raises(TooMuchToFetch, match=f"would fetch {cost['download']:,} bytes"):
        repeats("far", "30:40", of="instances", max_fetch=cost["download"] - 1, workspace=far)
    before = server.body_bytes
    found = repeats("far", "30:40", of="instances", near=0.5, max_fetch=cost["download"], workspace=far)
    fetched = server.body_bytes - before
    again = repeats("far", "30:40", of="instances", near=0.5, max_fetch=0, workspace=far)

    near = repeats("olmo", "30:40", of="instances", near=0.5, workspace=core_shared)
    assert cost["to_hash"] * 256 == cost["download"] <= fetched <= 1.5 * cost["download"]
    assert server.body_bytes - before == fetched and again.rows.equals(found.rows)
    assert found.rows.drop_columns("file").equals(near.rows.drop_columns("file"))
    assert str(found).removeprefix("far") == str(near).removeprefix("olmo")
