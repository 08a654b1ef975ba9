"""Fixtures: a range server, the tiny GPT-NeoX run, and a fake hub that has published it.

`huggingface_hub` reads its environment when it is imported, so that a test in a process that has imported it must pass
`endpoint=` and `cache_dir=` (read from HF_ENDPOINT and HF_HUB_CACHE); a process that the test starts need not. Left
unpatched on purpose: who forgets `endpoint=` asks the real hub, and fails where there is none. Patched are the
constants that would let in what is no part of a test: a token in the home folder, an offline mode set in the shell, and
the question what runs this client, which it asks its endpoint unless telemetry is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.fake_hub import FakeHub
from tests.servers.range_server import RangeServer
from tests.servers.tiny_neox import REPO_WITH_DATA, TinyRun, build_tiny_run, publish

# What someone's shell may set, and no test is about.
UNSET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def range_server() -> Iterator[RangeServer]:
    """A file server without files: give it some."""
    with RangeServer() as server:
        yield server


@pytest.fixture(scope="session")
def tiny_neox(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The tiny run as trained. Copy its folder before changing anything."""
    return build_tiny_run(tmp_path_factory.mktemp("neox") / "tiny-neox")


@pytest.fixture
def hub_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No token, no proxy, a home of its own for the client; HF_ENDPOINT leads nowhere. Yields the cache's folder."""
    from huggingface_hub import close_session, constants

    home = tmp_path / "huggingface"
    for name in (*UNSET, *PROXIES, *(name.lower() for name in PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()  # the client that a test before this one made has its proxies
    yield home / "hub"
    close_session()  # its connections lead to a hub that is gone


@pytest.fixture
def fake_hub(tiny_neox: TinyRun, hub_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny run in REPO and its data in DATA_REPO; in REPO_WITH_DATA both. HF_ENDPOINT names it."""
    with FakeHub() as hub:
        publish(hub, tiny_neox)
        publish(hub, tiny_neox, repo=REPO_WITH_DATA, data_repo=None)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub
