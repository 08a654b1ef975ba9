"""Probes of checkpoints on a hub, and of sharded ones on disk: what is fetched, read, kept, forgotten and skipped."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_index import dcp
from data_index.dcp import read_dcp_metadata
from data_index.errors import TooMuchToFetch
from data_index.registration import add
from data_index.remote import http, hub_files
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from forensics.measured_checkpoint import Task, read_needed
from forensics.probe_options import ProbeOptions
from forensics.probing import Probed, probe
from forensics.probing_plan import plan_probe
from probes.weight_probes import EmbeddingNorms
from replay import device_speed
from replay.weights import read_weights
from tests.forensics.test_cli import forensics
from tests.servers import faults
from tests.servers.fake_hub import FakeHub

REPO = "tiny-lab/larger-neox"
STEPS = (0, 1, 2)
VOCABULARY, HIDDEN, LAYERS = 2048, 128, 4
EMBEDDING_BYTES = 2 * VOCABULARY * HIDDEN * 4  # of input and output
FUNCTION = "sum_probe:total"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no time is spent on how fast this machine is, which plans say."""
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(device_speed, "matmul_flops", lambda *given, **named: 1e9)
    hub_files._files_at.cache_clear()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Files of a model of 5 MB, by step; at random."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    found = {}
    for step in STEPS:
        folder = tmp_path_factory.mktemp(f"step{step}")
        torch.manual_seed(step)
        config = GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            tie_word_embeddings=False,
        )
        GPTNeoXForCausalLM(config).save_pretrained(folder)
        found[step] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return found


def cut(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """The same model in two files and an index: embeddings in both."""
    (folder / "whole").write_bytes(files["model.safetensors"])
    tensors = load_file(folder / "whole")
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    found = {name: content for name, content in files.items() if name != "model.safetensors"}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
        found[file] = (folder / file).read_bytes()
    return found | {"model.safetensors.index.json": json.dumps(index).encode()}


@pytest.fixture(params=["one file", "two files"])
def stored(request: pytest.FixtureRequest, saved: dict[int, dict[str, bytes]], tmp_path: Path) -> Any:
    return saved if request.param == "one file" else {step: cut(files, tmp_path) for step, files in saved.items()}


@pytest.fixture
def add_larger(fake_hub: FakeHub, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publishes files by step and registers them as `larger`; a function that sums all weights is at hand."""
    (tmp_path / "sum_probe.py").write_text(
        "def total(model):\n    return sum(parameter.double().sum() for parameter in model.parameters())\n"
    )
    monkeypatch.chdir(tmp_path)

    def added(files: dict[int, dict[str, bytes]]) -> Workspace:
        fake_hub.add_repo(REPO, {"main": files[STEPS[-1]]} | {f"step{step}": files[step] for step in STEPS})
        add(REPO, name="larger", workspace=workspace)
        return workspace

    return added


@pytest.fixture
def larger(add_larger: Any, saved: dict[int, dict[str, bytes]]) -> Workspace:
    workspace: Workspace = add_larger(saved)
    return workspace


def measured(workspace: Workspace, *names: str, **options: Any) -> Probed:
    options = {"threads": 1, "device": "cpu"} | options
    return probe("larger", *names, options=ProbeOptions(**options), workspace=workspace)


def tensor_bytes(files: dict[str, bytes]) -> int:
    """Of all tensors: what is no header of their files."""
    weights = [content for name, content in files.items() if name.endswith(".safetensors")]
    return sum(len(content) - 8 - int.from_bytes(content[:8], "little") for content in weights)


def file_bytes(files: dict[str, bytes]) -> int:
    return sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))


def weights_on_disk(workspace: Workspace, hub_cache: Path) -> dict[Path, int]:
    """Blocks of weight files in the shared cache, and of stretches of them in the workspace's; headers are small."""
    places = [*workspace.cache.rglob("bytes"), *hub_cache.rglob("blobs/*")]
    sizes = {path: path.stat().st_blocks * 512 for path in places}
    return {path: size for path, size in sizes.items() if size > 32_768}


# --- what is fetched -------------------------------------------------------------------------------------------------


def test_a_probe_of_some_tensors_fetches_those_alone(add_larger: Any, stored: Any, fake_hub: FakeHub) -> None:
    """Headers, and pages of neighbours, are less than 5 % on top."""
    workspace = add_larger(stored)
    before = fake_hub.cdn.body_bytes
    found = measured(workspace, "embedding-norms")
    fetched, needed = fake_hub.cdn.body_bytes - before, len(STEPS) * EMBEDDING_BYTES

    assert not found.problems and found.num_bytes == needed
    assert needed < fetched <= 1.05 * needed < len(STEPS) * tensor_bytes(stored[0]) / 2
    for step in STEPS:
        weights = read_weights(workspace.checkpoint(workspace.run("larger"), step))
        by_hand = [weights[n].double().norm(dim=1).mean().item() for n in weights if "embed" in n or "lm_head" in n]
        means = [row["value"] for row in found.rows if row["step"] == step and "mean" in row["metric"]]
        assert sorted(means) == pytest.approx(sorted(by_hand), rel=1e-6)


def test_neighbours_come_in_one_request(larger: Workspace, saved: Any, fake_hub: FakeHub) -> None:
    """All matrices of four layers, with biases between them that are not needed."""
    before = len(fake_hub.cdn.log)
    found = measured(larger, "spectra", num_tokens=2)
    requests = [request for request in fake_hub.cdn.log[before:] if request.body_bytes]

    assert not found.problems
    assert len(requests) < 6 * len(STEPS)
    assert sum(request.body_bytes for request in requests) <= 1.05 * found.num_bytes


def test_each_file_is_fetched_once_for_several_probes(add_larger: Any, stored: Any, fake_hub: FakeHub) -> None:
    workspace = add_larger(stored)
    before = len(fake_hub.cdn.log)
    found = measured(workspace, FUNCTION, "norms", "embedding-norms")
    bodies: Counter[str] = Counter()
    for request in fake_hub.cdn.log[before:]:
        bodies[request.path] += request.body_bytes
    whole = {
        fake_hub.cdn_path(REPO, f"step{step}", name): len(content)
        for step in STEPS
        for name, content in stored[step].items()
        if name.endswith(".safetensors")
    }

    assert not found.problems and found.num_bytes == sum(tensor_bytes(stored[step]) for step in STEPS)
    assert bodies.keys() == whole.keys()
    for path, size in whole.items():
        assert size <= bodies[path] <= 1.05 * size
    sums = {row["step"]: row["value"] for row in found.rows if row["probe"] == FUNCTION}
    for step in STEPS:
        weights = read_weights(workspace.checkpoint(workspace.run("larger"), step)).values()
        assert sums[step] == pytest.approx(float(sum(tensor.double().sum() for tensor in weights)), rel=1e-9)


@pytest.mark.parametrize("names", [("embedding-norms",), ("embedding-norms", FUNCTION), ("norms",)], ids=" ".join)
def test_a_plan_tells_what_is_then_fetched(
    add_larger: Any, stored: Any, fake_hub: FakeHub, names: Sequence[str]
) -> None:
    """To the byte, besides headers; nothing of it is fetched, and nothing is left to fetch afterwards."""
    workspace = add_larger(stored)
    options = ProbeOptions(threads=1, device="cpu")
    rows, _ = plan_probe("larger", *names, options=options, workspace=workspace)
    headers = fake_hub.cdn.body_bytes
    whole = names != ("embedding-norms",)
    for row, step in zip(rows, STEPS, strict=False):
        assert row["bytes_to_read"] == (tensor_bytes(stored[step]) if whole else EMBEDDING_BYTES)
        assert row["bytes_to_fetch"] == (file_bytes(stored[step]) if whole else EMBEDDING_BYTES)
    assert rows[-1]["bytes_to_fetch"] == sum(row["bytes_to_fetch"] for row in rows[:-1])
    assert headers < 0.05 * EMBEDDING_BYTES
    measured(workspace, *names)

    fetched = fake_hub.cdn.body_bytes - headers
    assert rows[-1]["bytes_to_fetch"] <= fetched <= rows[-1]["bytes_to_fetch"] * 1.04
    again, _ = plan_probe("larger", "embedding-norms", options=ProbeOptions(seed=5, threads=1), workspace=workspace)
    assert again[-1]["bytes_to_fetch"] == 0
    other, _ = plan_probe("larger", FUNCTION, "spectra", options=options, workspace=workspace)
    assert other[-1]["bytes_to_fetch"] == (0 if whole else sum(file_bytes(stored[step]) for step in STEPS))


def test_too_much_is_refused_before_a_tensor_is_fetched(larger: Workspace, fake_hub: FakeHub) -> None:
    wanted = len(STEPS) * EMBEDDING_BYTES
    with pytest.raises(TooMuchToFetch, match=f"3 checkpoints of larger would fetch {wanted:,} bytes"):
        measured(larger, "embedding-norms", max_fetch=wanted - 1)
    assert fake_hub.cdn.body_bytes < 0.05 * EMBEDDING_BYTES
    assert not measured(larger, "embedding-norms", max_fetch=wanted).problems


# --- what is left on disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("embedding-norms",), (FUNCTION, "embedding-norms")], ids=" ".join)
def test_what_was_fetched_is_forgotten_and_numbers_are_equal(
    add_larger: Any, stored: Any, hub_environment: Path, names: Sequence[str], tmp_path: Path
) -> None:
    workspace = add_larger(stored)
    before = weights_on_disk(workspace, hub_environment)
    forgetting = measured(workspace, *names, forget_fetched=True)
    assert weights_on_disk(workspace, hub_environment) == before == {}
    other = Workspace(tmp_path / "other")
    add(REPO, name="larger", workspace=other)
    keeping = measured(other, *names)

    assert forgetting.rows == keeping.rows and len(forgetting.rows) > 0
    assert weights_on_disk(other, hub_environment) or weights_on_disk(workspace, hub_environment)


def test_it_is_forgotten_again_when_it_was_fetched_again(larger: Workspace, hub_environment: Path) -> None:
    """Headers that a plan left, and files that were emptied before, are no weights that were there before."""
    plan_probe("larger", "embedding-norms", options=ProbeOptions(threads=1), workspace=larger)
    for seed in range(2):
        for path in (larger.home("larger") / "probes" / "answers").glob("*.json"):
            path.unlink()
        found = measured(larger, "embedding-norms", forget_fetched=True, seed=seed)
        assert found.num_measured == 3 and not weights_on_disk(larger, hub_environment)


def test_what_was_there_before_stays(larger: Workspace, fake_hub: FakeHub, hub_environment: Path) -> None:
    """A whole file in the shared cache, a stretch of another, and content that two revisions share."""
    run = larger.run("larger")
    read_weights(larger.checkpoint(run, 0))  # whole
    measured(larger, "embedding-norms")  # stretches of 1 and 2
    before = weights_on_disk(larger, hub_environment)
    assert len(before) == 3
    content = {path: path.read_bytes() for path in before}
    found = measured(larger, FUNCTION, forget_fetched=True)

    assert not found.problems and found.num_measured == 3
    assert weights_on_disk(larger, hub_environment) == before
    assert {path: path.read_bytes() for path in before} == content
    sent = fake_hub.cdn.body_bytes
    assert measured(larger, "embedding-norms").num_measured == 0
    other = ProbeOptions(threads=1, precision="bf16")
    plan, _ = plan_probe("larger", "spectra", "embedding-norms", options=other, workspace=larger)
    assert [row["bytes_to_read"] - row["bytes_to_fetch"] for row in plan[1:3]] == [EMBEDDING_BYTES] * 2
    assert plan[0]["bytes_to_fetch"] == 0 < plan[1]["bytes_to_fetch"]
    assert fake_hub.cdn.body_bytes == sent


def test_content_that_another_revision_has_is_not_deleted(add_larger: Any, saved: Any, hub_environment: Path) -> None:
    """The client keeps one copy for revisions with the same file."""
    workspace = add_larger(saved | {1: saved[0]})
    read_weights(workspace.checkpoint(workspace.run("larger"), 0))
    measured(workspace, FUNCTION, forget_fetched=True)

    links = [path for path in hub_environment.rglob("model.safetensors") if path.is_symlink()]
    assert [path.is_file() for path in links] == [True]


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [faults.ServerError(500), faults.NotFound(), faults.BrokenConnection()], ids=str)
@pytest.mark.parametrize("name", ["embedding-norms", FUNCTION])
def test_a_checkpoint_that_does_not_answer_is_told_and_measured_later(
    larger: Workspace, fake_hub: FakeHub, fault: faults.Fault, name: str
) -> None:
    """Others are measured meanwhile."""
    commit = fake_hub.repo(REPO).commit_of("step1")
    assert commit is not None
    fake_hub.plant(fake_hub.resolve_path(REPO, commit, "model.safetensors"), fault, forever=True)
    fake_hub.plant(fake_hub.cdn_path(REPO, "step1", "model.safetensors"), fault, forever=True)
    done = forensics(larger, "probe", "larger", name, "--threads", "1", "--format", "json")

    assert done.returncode == 1 and {row["step"] for row in json.loads(done.stdout)} == {0, 2}
    assert "skipped at checkpoint 1" in done.stderr and "Traceback" not in done.stderr
    assert "model.safetensors" in done.stderr
    fake_hub.heal()
    fake_hub.cdn.heal()
    found = measured(larger, name)
    assert (found.num_measured, found.problems, {row["step"] for row in found.rows}) == (1, (), set(STEPS))


def test_offline_measures_what_is_kept(larger: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read_weights(larger.checkpoint(larger.run("larger"), 1))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_files._files_at.cache_clear()
    found = measured(larger, "embedding-norms")

    assert [row["step"] for row in found.rows if "mean" in row["metric"]] == [1, 1]
    assert [problem.step for problem in found.problems] == [0, 2]
    assert all("HF_HUB_OFFLINE" in problem.message for problem in found.problems)


# --- sharded checkpoints on disk -------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Stretches that are read of files of distributed checkpoints."""
    found: list[tuple[str, int, int]] = []
    plain = dcp.read_range

    def noted(path: Any, start: int, stop: int) -> bytes:
        found.append((Path(path).name, start, stop))
        return plain(path, start, stop)

    monkeypatch.setattr(dcp, "read_range", noted)
    return found


def embeddings_of(location: Path, layout: str = "olmo_core") -> tuple[dict[str, torch.Tensor], int]:
    checkpoint = Checkpoint(run="made", step=1, location=location, layout=layout, states=("weights",))
    return read_needed(Task(checkpoint=checkpoint, config={}, probes={"embedding-norms": EmbeddingNorms()}))


def test_some_tensors_of_a_distributed_checkpoint_are_read_alone(
    tmp_path: Path, reads: list[tuple[str, int, int]]
) -> None:
    import torch.distributed.checkpoint as distributed

    sizes = {"embeddings.weight": (2048, 128), "lm_head.w_out.weight": (2048, 128), "lm_head.norm.weight": (128,)}
    for layer in range(4):
        sizes |= {f"blocks.{layer}.feed_forward.{name}.weight": (512, 128) for name in ("w1", "w3")}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"model.{name}": torch.randn(size, generator=generator) for name, size in sizes.items()}
    writer = distributed.FileSystemWriter(tmp_path / "model_and_optim", single_file_per_rank=False, sync_files=False)
    with warnings.catch_warnings(action="ignore"):  # that this is one process is what is meant
        distributed.save(tensors, storage_writer=writer, no_dist=True)
    found, num_bytes = embeddings_of(tmp_path)
    metadata = (tmp_path / "model_and_optim" / ".metadata").stat().st_size

    assert num_bytes == 2 * 2048 * 128 * 4
    assert num_bytes < sum(stop - start for _, start, stop in reads) + metadata <= 1.05 * num_bytes
    assert found.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(found["model.embed_tokens.weight"], tensors["model.embeddings.weight"])
    assert torch.equal(found["lm_head.weight"], tensors["model.lm_head.w_out.weight"])


def test_only_the_pieces_of_the_tensors_are_read(core_shared: Workspace, reads: list[tuple[str, int, int]]) -> None:
    """Of OLMo-core's own checkpoint; of one that two ranks wrote, the pieces of both."""
    fixtures = Path(__file__).parents[1] / "fixtures"
    for location, layout, names in (
        (core_shared.checkpoint(core_shared.run("core"), 20).folder, "olmo_core", ("embeddings", "lm_head.w_out")),
        (fixtures / "olmo-sharded" / "torch_new", "olmo_sharded", ("transformer.wte", "transformer.ff_out")),
    ):
        reads.clear()
        found, _ = embeddings_of(location, layout)
        entries = read_dcp_metadata(location / "model_and_optim")
        wanted = [
            (Path(str(piece.path)).name, piece.offset, piece.offset + piece.length)
            for name, entry in entries.items()
            for piece in entry.pieces
            if name in {f"model.{one}.weight" for one in names}
        ]
        assert found and sorted(reads) == sorted(wanted)
