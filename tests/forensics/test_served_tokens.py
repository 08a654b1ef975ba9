"""`tokens` of models on the hub and of checkpoints on servers: the embedding tensors are fetched, and nothing else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_index.dcp import read_dcp_metadata
from data_index.errors import (
    AccessDenied,
    MissingCheckpoint,
    MissingFile,
    Offline,
    TooMuchToFetch,
    UnknownLayout,
    UnknownRun,
    UnsafeFile,
)
from data_index.registration import add
from data_index.remote import http, hub_files
from data_index.workspace import Workspace
from forensics.token_repair import repair
from forensics.token_verification import Verifying
from forensics.undertrained_tokens import tokens
from tests.conftest import FIXTURES
from tests.data_index.test_gguf_file import gguf
from tests.data_index.test_token_categories import byte_level
from tests.forensics.test_cli import answer
from tests.forensics.test_remote_runs import write_manifest
from tests.forensics.test_token_repair import INPUT, OUTPUT, assert_only_rows_changed, files_of
from tests.forensics.test_undertrained_tokens import UNTRAINED, planted
from tests.replay.test_causal_model import as_gguf, saved
from tests.servers.fake_hub import TOKEN, FakeHub
from tests.servers.range_server import RangeServer

REPO = "lab/model"
OLMO, CORE = FIXTURES / "olmo", FIXTURES / "olmo-core" / "main" / "ckpt"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    hub_files._files_at.cache_clear()


@pytest.fixture
def hub(hub_environment: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub without a repository."""
    with FakeHub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


def model(folder: Path, *, sharded: bool = False, tied: bool = False) -> Path:
    """A planted model with layers, which no one needs to fetch."""
    planted(folder, tied=tied)
    tensors = load_file(folder / "model.safetensors")
    layers = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(64, 48) for n in range(4)}
    save_file(tensors | layers, folder / "model.safetensors")
    if sharded:
        (folder / "model.safetensors").unlink()
        parts = {
            "1": {INPUT: tensors[INPUT]},
            "2": layers,
            "3": {OUTPUT: tensors[OUTPUT], "model.norm.weight": torch.ones(48)},
        }
        places = {}
        for number, part in parts.items():
            save_file(part, folder / f"model-{number}.safetensors")
            places |= dict.fromkeys(part, f"model-{number}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def header_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def headers_of(folder: Path) -> int:
    return sum(header_bytes(path.read_bytes()) for path in folder.glob("*.safetensors"))


# --- repositories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_repository_two_tensors_are_fetched_and_headers(
    tmp_path: Path, workspace: Workspace, hub: FakeHub, sharded: bool
) -> None:
    folder = model(tmp_path / "m", sharded=sharded)
    hub.add_repo(REPO, {"main": files_of(folder)})
    (plan,) = {row["bytes_to_fetch"] for row in answer(workspace, "tokens", REPO, "--plan")}
    assert hub.cdn.body_bytes == headers_of(folder) and plan == 261 * 48 * 4
    found = tokens(REPO, workspace=workspace)

    assert hub.cdn.body_bytes == headers_of(folder) + 2 * plan
    assert found.rows == tokens(str(folder), workspace=workspace).rows and found.num_bytes == 2 * plan
    tokens(REPO, workspace=workspace)
    assert hub.cdn.body_bytes == headers_of(folder) + 2 * plan


def test_a_revision_is_a_branch_a_commit_or_an_error_that_names_others(
    tmp_path: Path, workspace: Workspace, hub: FakeHub
) -> None:
    early, late = planted(tmp_path / "early"), planted(tmp_path / "late", bytes_known=False)
    repo = hub.add_repo(REPO, {"main": files_of(late), "run/step7": files_of(early)})
    expected = tokens(str(early), workspace=workspace).rows

    assert tokens(f"{REPO}@run/step7", workspace=workspace).rows == expected
    assert tokens(f"{REPO}@{repo.branches['run/step7']}", workspace=workspace).rows == expected
    assert tokens(f"hub:{REPO}", workspace=workspace).rows == tokens(str(late), workspace=workspace).rows != expected
    with pytest.raises(MissingCheckpoint, match="no revision 'run/step8'; there are main, run/step7"):
        tokens(f"{REPO}@run/step8", workspace=workspace)


def test_a_folder_and_a_file_of_a_repository_are_named_behind_it(
    tmp_path: Path, workspace: Workspace, hub: FakeHub
) -> None:
    folder = planted(tmp_path / "m")
    below = {f"step3/{name}": content for name, content in files_of(folder).items()}
    hub.add_repo(REPO, {"main": below, "v": {}, "v/2": below})
    expected = tokens(str(folder), workspace=workspace).rows

    for name in (f"{REPO}/step3", f"{REPO}@main/step3/", f"{REPO}@v/2/step3/model.safetensors"):
        assert tokens(name, workspace=workspace).rows == expected, name
    assert tokens(hub.url(f"/{REPO}/step3"), workspace=workspace).rows == expected


def test_gguf_in_a_repository_is_read_where_it_is_the_only_one(
    tmp_path: Path, workspace: Workspace, hub: FakeHub
) -> None:
    folder, tokenizer = planted(tmp_path / "m"), byte_level()
    entry = load_file(folder / "model.safetensors")[INPUT]
    pieces = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if piece == "<|end|>" else 1 for piece in pieces],
        "tokenizer.ggml.merges": ["Ġ t", "Ġt e", "ð Ł"],
    }
    layers = {"blk.0.ffn_up.weight": ((4096, 256), 0, bytes(4096 * 256 * 4))}
    content = gguf(metadata, {"token_embd.weight": (tuple(entry.shape), 0, entry.numpy().tobytes())} | layers)
    hub.add_repo(REPO, {"main": {"q8.gguf": content}, "two": {"q8.gguf": content, "q4.gguf": content}})
    expected = tokens(str(folder), workspace=workspace).rows

    assert tokens(REPO, workspace=workspace).rows == expected
    assert hub.body_bytes < 2**21 < len(content)
    with pytest.raises(UnknownLayout, match=f"2 GGUF files: name one of them, such as {REPO}@two/q4.gguf"):
        tokens(f"{REPO}@two", workspace=workspace)
    assert tokens(f"{REPO}@two/q4.gguf", workspace=workspace).rows == expected


def test_of_a_repository_with_weights_of_both_kinds_gguf_is_not_read(
    tmp_path: Path, workspace: Workspace, hub: FakeHub
) -> None:
    folder = planted(tmp_path / "m")
    hub.add_repo(REPO, {"main": files_of(folder) | {"q8.gguf": b"GGUF"}})

    assert tokens(REPO, workspace=workspace).rows == tokens(str(folder), workspace=workspace).rows


def test_what_a_repository_lacks_is_said(tmp_path: Path, workspace: Workspace, hub: FakeHub) -> None:
    files = files_of(planted(tmp_path / "m"))
    hub.add_repo(REPO, {"main": {"README.md": b"hello"}, "bare": {k: v for k, v in files.items() if k[0] != "t"}})

    with pytest.raises(MissingFile, match="holds none of model.safetensors"):
        tokens(REPO, workspace=workspace)
    with pytest.raises(MissingFile, match="no tokenizer.json: name one with --tokenizer"):
        tokens(f"{REPO}@bare", workspace=workspace)
    assert tokens(f"{REPO}@bare", tokenizer=tmp_path / "m" / "tokenizer.json", workspace=workspace).rows
    with pytest.raises(MissingFile, match=r"lab/nothing is not on .* \(and lab/nothing is no file or folder here\)"):
        tokens("lab/nothing", workspace=workspace)
    with pytest.raises(UnknownRun, match="no run or fork"):
        tokens("lab/../model", workspace=workspace)


def test_a_gated_repository_wants_a_token_and_offline_only_what_is_kept(
    tmp_path: Path, workspace: Workspace, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add_repo(REPO, {"main": files_of(planted(tmp_path / "m"))}, gated="files")
    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        tokens(REPO, workspace=workspace)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = tokens(REPO, workspace=workspace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_files._files_at.cache_clear()

    assert tokens(f"{REPO}@{repo.branches['main']}", workspace=workspace).rows == found.rows
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        tokens(f"{REPO}@{'0' * 40}", workspace=workspace)


def test_a_repository_is_verified_as_a_folder_is(tmp_path: Path, workspace: Workspace, hub: FakeHub) -> None:
    """Weights are fetched whole, once, and only as many as are allowed; GGUF too."""
    made = saved(tmp_path / "m", vocab_size=261, num_key_value_heads=2)
    byte_level().save(str(tmp_path / "m" / "tokenizer.json"))
    files = files_of(tmp_path / "m")
    hub.add_repo(REPO, {"main": files, "gguf": {"m.gguf": as_gguf(made), "tokenizer.json": files["tokenizer.json"]}})
    expected = tokens(str(tmp_path / "m"), unused=[256, 258], verify=True, workspace=workspace)
    asked = [row["token_id"] for row in expected.rows if row["verified"] is not None]
    (plan,) = answer(workspace, "tokens", REPO, "--verify", "--plan")
    assert plan["bytes_to_fetch"] == len(files["model.safetensors"]) and plan["prompt_tokens"] > 0
    assert plan["candidates"] == round(0.02 * sum(row["rank"] is not None for row in expected.rows))

    for name in (REPO, f"{REPO}@gguf"):
        with pytest.raises(TooMuchToFetch, match="the weights of lab/model"):
            tokens(name, unused=[256, 258], verify=Verifying(max_fetch=1000), workspace=workspace)
        found = tokens(name, unused=[256, 258], verify=True, workspace=workspace)
        by_id = {row["token_id"]: row["max_probability"] for row in found.rows}
        # Norms' epsilon is rounded to fp32 in GGUF.
        assert [by_id[t] for t in asked] == pytest.approx(
            [row["max_probability"] for row in expected.rows if row["verified"] is not None], rel=1e-3
        )
        before = hub.cdn.body_bytes
        assert tokens(name, unused=[256, 258], verify=True, workspace=workspace).rows == found.rows
        assert hub.cdn.body_bytes == before > 0


# --- checkpoints of runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path, workspace: Workspace, range_server: RangeServer, hub_environment: Path) -> Workspace:
    """A run on a server: checkpoint 10 in archives of the legacy OLMo trainer, checkpoint 20 distributed."""
    for root, below in ((OLMO, "data/*.npy"), (OLMO, "run/step10-unsharded/*"), (CORE, "step20/**/*")):
        for path in root.glob(below):
            if path.is_file():
                range_server.files[f"/{root.name}/{path.relative_to(root)}"] = path.read_bytes()
    manifest = write_manifest(tmp_path / "manifest", range_server)
    manifest.write_text(
        manifest.read_text()
        + f'[[checkpoints]]\nstep = 20\nurl = "{range_server.url("/ckpt/step20")}"\nlayout = "olmo_core"\n'
        'states = ["weights", "optimizer"]\n'
    )
    add(manifest, workspace=workspace)
    return workspace


def test_of_a_far_distributed_checkpoint_the_items_of_four_tensors_are_fetched(
    far: Workspace, range_server: RangeServer, core_shared: Workspace
) -> None:
    """Both matrices, and the second moments of each, which tell rows that were never updated."""
    near, before = tokens("core", 20, workspace=core_shared), range_server.body_bytes
    found = tokens("far", 20, tokenizer=core_shared.run("core").tokenizer, workspace=far)

    entries = read_dcp_metadata(CORE / "step20" / "model_and_optim")
    names = ("embeddings.weight", "lm_head.w_out.weight")
    read = [*(f"model.{name}" for name in names), *(f"optim.state.{name}.exp_avg_sq" for name in names)]
    items = sum(piece.length for name in read for piece in entries[name].pieces)
    metadata = (CORE / "step20" / "model_and_optim" / ".metadata").stat().st_size
    assert range_server.body_bytes - before == metadata + items
    assert [row["indicator"] for row in found.rows] == [row["indicator"] for row in near.rows]
    assert found.counts() == near.counts() and found.counts()["never_updated"] > 0


def test_of_far_archives_the_rows_are_those_of_near_ones(
    far: Workspace, range_server: RangeServer, core_shared: Workspace
) -> None:
    near, before = tokens("olmo", 10, workspace=core_shared), range_server.body_bytes
    found = tokens("far", 10, tokenizer=core_shared.run("olmo").tokenizer, workspace=far)

    assert [row["indicator"] for row in found.rows] == [row["indicator"] for row in near.rows]
    archives = ("model.pt", "optim.pt")
    whole = sum(len(range_server.files[f"/olmo/run/step10-unsharded/{name}"]) for name in archives)
    # The directories of a toy's archives are half of them.
    assert found.num_bytes < range_server.body_bytes - before < 0.7 * whole


# --- repaired --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True])
def test_a_repository_is_repaired_into_a_folder(
    tmp_path: Path, workspace: Workspace, hub: FakeHub, sharded: bool
) -> None:
    """A plan fetches what `tokens` does; the rest is fetched when it is copied."""
    folder = model(tmp_path / "m", sharded=sharded)
    more = {"onnx/model.onnx": b"old rows", ".gitattributes": b"x", "pytorch_model.bin": b"old rows"}
    hub.add_repo(REPO, {"main": files_of(folder) | more})
    plan = repair(REPO, None, workspace=workspace, plan=True)
    assert hub.cdn.body_bytes == headers_of(folder) + 2 * 261 * 48 * 4
    with pytest.raises(TooMuchToFetch, match="the weights of lab/model would fetch"):
        repair(REPO, tmp_path / "out", max_fetch=1000, workspace=workspace)
    done = repair(REPO, tmp_path / "out", workspace=workspace)

    assert_only_rows_changed(folder, tmp_path / "out", {INPUT: UNTRAINED, OUTPUT: UNTRAINED})
    assert done.report() == plan.report() and set(done.left_out) == {"onnx/", "pytorch_model.bin"}


def test_a_far_checkpoint_is_repaired_like_the_near_one(tmp_path: Path, far: Workspace, core_shared: Workspace) -> None:
    tokenizer = core_shared.run("olmo").tokenizer
    repair("olmo", tmp_path / "near", 10, workspace=core_shared)
    repair("far", tmp_path / "far", 10, tokenizer=tokenizer, workspace=far)

    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")


def test_a_listing_that_leads_out_of_its_folder_writes_nothing(
    tmp_path: Path, workspace: Workspace, hub: FakeHub
) -> None:
    hub.add_repo(REPO, {"main": files_of(planted(tmp_path / "m")) | {"../../outside.txt": b"x"}})

    with pytest.raises(UnsafeFile, match="outside its folder"):
        repair(REPO, tmp_path / "in" / "out", workspace=workspace)
    assert not (tmp_path / "in").exists() and not (tmp_path / "outside.txt").exists()
