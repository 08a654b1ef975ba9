"""Servers that lie: nothing they send is believed before it fits, run, or written outside the cache."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from data_index.errors import CorruptFile, ForensicsError, MissingFile, UnsafeFile
from data_index.registration import add
from data_index.remote import http, hub_files
from data_index.remote.path import RemotePath
from data_index.run import Checkpoint
from data_index.workspace import Workspace
from replay.stored_remote import stored_remote_safetensors
from replay.weights import read_tensor, read_weights
from tests.servers.fake_hub import FakeHub
from tests.servers.range_server import RangeServer
from tests.servers.tiny_neox import REPO, TinyRun


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, hub_environment: Path) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    hub_files._files_at.cache_clear()


def safetensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int, stop: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


LIES = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a length beyond the file": struct.pack("<Q", 2**40) + b"{}",
    "a length beyond 64 bits' half": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no JSON": safetensors(b"not json"),
    "no object": safetensors(b"[1, 2]"),
    "nested without end": safetensors(b"[" * 100_000),
    "no dtype": safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "an odd dtype": safetensors({"a": entry(0, 4, [1], "F33")}, bytes(4)),
    "a dtype that is a list": safetensors({"a": entry(0, 4, [1]) | {"dtype": ["F32"]}}, bytes(4)),
    "a negative shape": safetensors({"a": entry(0, 4, [-1])}, bytes(4)),
    "a shape of text": safetensors({"a": entry(0, 4, ["1"])}, bytes(4)),
    "a shape of true": safetensors({"a": entry(0, 4, [True])}, bytes(4)),
    "a shape too large": safetensors({"a": entry(0, 4, [2**62, 2**62])}, bytes(4)),
    "a shape of nothing, much of it": safetensors({"a": entry(0, 0, [0, 2**63])}),
    "more elements than bytes": safetensors({"a": entry(0, 4, [2])}, bytes(4)),
    "offsets outside": safetensors({"a": entry(0, 8, [2])}, bytes(4)),
    "offsets backwards": safetensors({"a": entry(4, 0, [1])}, bytes(4)),
    "offsets negative": safetensors({"a": entry(-4, 0, [1])}, bytes(4)),
    "offsets that overlap": safetensors({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(8)),
    "a hole": safetensors({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "bytes that no one owns": safetensors({"a": entry(0, 4, [1])}, bytes(8)),
    "three offsets": safetensors({"a": entry(0, 4, [1]) | {"data_offsets": [0, 4, 8]}}, bytes(4)),
    "an entry that is text": safetensors({"a": "F32"}, bytes(4)),
    "infinite numbers": safetensors(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', bytes(4)),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(content: bytes, range_server: RangeServer, tmp_path: Path) -> None:
    range_server.files["/model.safetensors"] = content

    with pytest.raises(CorruptFile):
        stored_remote_safetensors(RemotePath(range_server.url("/model.safetensors"), tmp_path))
    assert range_server.body_bytes <= len(content)


def test_an_honest_header_is_read(range_server: RangeServer, tmp_path: Path) -> None:
    """The same reader as above, so that its refusals mean something."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(0, 5), "c": torch.tensor(3, dtype=torch.int64)}
    range_server.files["/model.safetensors"] = save(tensors, metadata={"format": "pt"})

    stored = stored_remote_safetensors(RemotePath(range_server.url("/model.safetensors"), tmp_path))

    assert set(stored) == set(tensors)
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..", "a\\b", ""])
def test_an_index_cannot_lead_outside_its_folder(name: str, range_server: RangeServer, tmp_path: Path) -> None:
    range_server.files["/step1/model.safetensors.index.json"] = json.dumps({"weight_map": {"a": name}}).encode()
    range_server.files["/step1/config.json"] = b"{}"
    checkpoint = Checkpoint(
        run="x", step=1, location=RemotePath(range_server.url("/step1"), tmp_path), layout="hf", states=("weights",)
    )

    with pytest.raises(UnsafeFile, match="outside its folder"):
        read_weights(checkpoint)
    with pytest.raises(UnsafeFile, match="outside its folder"):
        read_tensor(checkpoint, "a")


def test_addresses_cannot_name_a_place_outside_the_cache(range_server: RangeServer, tmp_path: Path) -> None:
    for path in ("/../../../outside", "/a/..", "/%2e%2e/x", "/x;y|z", "/" + "long" * 100):
        range_server.files[path] = b"content"
        with contextlib.suppress(ForensicsError):
            RemotePath(range_server.url(path), tmp_path / "cache", num_bytes=7).read(0, 7)

    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and all(path.is_relative_to(tmp_path / "cache") for path in kept)
    assert not (tmp_path.parent / "outside").exists()


HOSTILE_CONFIGS = {
    "no JSON": b"{",
    "a list": b"[]",
    "nested": b"[" * 50_000,
    "numbers that are none": b'{"vocab_size": NaN, "hidden_size": 1e400}',
}


@pytest.mark.parametrize("config", HOSTILE_CONFIGS.values(), ids=HOSTILE_CONFIGS)
def test_a_config_of_a_repository_is_data(
    config: bytes, fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()} | {"config.json": config}
    fake_hub.add_repo("lab/hostile", {"main": files, "step8": files})

    try:
        run = add("lab/hostile", workspace=workspace)
    except CorruptFile:
        assert workspace.run_names() == []
    else:
        assert run.trust.level == "unknown"


def test_files_of_a_repository_are_staged_by_name_alone(
    fake_hub: FakeHub, workspace: Workspace, tiny_neox: TinyRun
) -> None:
    """A listing may name anything: what is not asked for is not written."""
    files = {path.name: path.read_bytes() for path in tiny_neox.checkpoints[8].iterdir()}
    odd = {"../../escape.yml": b"a: 1", "configs/../../escape.yml": b"a: 1", "run.py": b"raise SystemExit"}
    fake_hub.add_repo("lab/odd", {"main": files | odd, "step8": files})

    with contextlib.suppress(ForensicsError):
        add("lab/odd", workspace=workspace)

    assert not list(workspace.folder.parent.rglob("escape.yml"))
    assert not list(workspace.folder.rglob("run.py"))


def test_a_commit_that_is_none_is_refused(fake_hub: FakeHub, workspace: Workspace) -> None:
    """It would become part of an address and of a path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.servers.fake_hub._refs", lambda repo: _refs("../../../x"))
        with pytest.raises((CorruptFile, MissingFile), match="as the commit of step8"):
            add(REPO, workspace=workspace)


def _refs(commit: str) -> dict[str, Any]:
    branch = {"name": "step8", "ref": "refs/heads/step8", "targetCommit": commit}
    return {"branches": [branch], "tags": [], "converts": []}
