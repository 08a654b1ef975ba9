"""The fake hub, asked by the hub's real client."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.servers.fake_hub import FakeHub
from tests.servers.faults import Fine, ServerError, TooManyRequests, TruncatedBody, WrongContent, WrongSize, inverted
from tests.servers.tiny_neox import DATA_REPO, REPO, SAVED, TinyRun

SMALL, LARGE = "config.json", "model.safetensors"


@pytest.fixture
def api(fake_hub: FakeHub) -> HfApi:
    return HfApi(endpoint=fake_hub.address, token=False)


def download(hub: FakeHub, cache: Path, path: str, repo: str = REPO, **more: Any) -> Path:
    """As our own code must: endpoint and cache by name, because the client read its environment long ago."""
    options = {"revision": "step8", "token": False} | more
    return Path(hf_hub_download(repo, path, endpoint=hub.address, cache_dir=cache, **options))


def test_refs_are_the_steps(api: HfApi, fake_hub: FakeHub) -> None:
    branches = {ref.name: ref.target_commit for ref in api.list_repo_refs(REPO).branches}

    assert set(branches) == {"main", *(f"step{step}" for step in SAVED)}
    assert branches == fake_hub.repo(REPO).branches and len(set(branches.values())) == len(SAVED) + 1
    assert [ref.name for ref in api.list_repo_refs(DATA_REPO, repo_type="dataset").branches] == ["main"]


@pytest.mark.parametrize(("page_size", "num_pages"), [(1, 5), (2, 3), (5, 1), (1000, 1)])
def test_a_tree_is_listed_page_by_page(page_size: int, num_pages: int, api: HfApi, fake_hub: FakeHub) -> None:
    fake_hub.page_size = page_size
    fake_hub.add_repo("lab/deep", {"main": {"a/b/c.txt": b"1", "a/d.bin": b"2", "e.txt": b"3"}})

    found = list(api.list_repo_tree("lab/deep", recursive=True, expand=True))

    assert [entry.path for entry in found] == ["a", "a/b", "a/b/c.txt", "a/d.bin", "e.txt"]
    assert len(fake_hub.requests_of("/api/models/lab/deep/tree/main")) == num_pages
    top = [entry.path for entry in api.list_repo_tree("lab/deep")]
    assert (top, [entry.path for entry in api.list_repo_tree("lab/deep", "a")]) == (["a", "e.txt"], ["a/b", "a/d.bin"])
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("lab/deep", "none"))


def test_a_listing_says_sizes_and_hashes(api: HfApi, tiny_neox: TinyRun) -> None:
    found = {entry.path: entry for entry in api.list_repo_tree(REPO, revision="step16", recursive=True)}
    weights = (tiny_neox.checkpoints[16] / LARGE).read_bytes()

    assert {SMALL, LARGE, "tokenizer.json"} <= set(found)
    assert found[LARGE].lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert (found[LARGE].size, found[SMALL].lfs) == (len(weights), None)
    siblings = api.model_info(REPO, revision="step16", files_metadata=True).siblings
    assert {(s.rfilename, s.size, s.blob_id) for s in siblings} == {(f.path, f.size, f.blob_id) for f in found.values()}
    data = [entry.path for entry in api.list_repo_tree(DATA_REPO, repo_type="dataset")]
    assert data == ["README.md", *(path.name for path in sorted(tiny_neox.data))]


def test_a_revision_is_a_commit_and_a_branch_that_moves_is_another(api: HfApi, fake_hub: FakeHub) -> None:
    repo = fake_hub.repo(REPO)
    before = api.model_info(REPO, revision="step8").sha

    after = repo.put("step8", {SMALL: b"{}"})

    assert api.model_info(REPO, revision="step8").sha == after != before
    assert [entry.path for entry in api.list_repo_tree(REPO, revision=after)] == [SMALL]
    assert LARGE in [entry.path for entry in api.list_repo_tree(REPO, revision=before)]
    assert api.dataset_info(DATA_REPO).sha == fake_hub.repo(DATA_REPO, "dataset").branches["main"]


@pytest.mark.parametrize("path", [SMALL, LARGE])
@pytest.mark.parametrize("redirected", [True, False])
def test_a_file_is_downloaded_once(
    path: str, redirected: bool, fake_hub: FakeHub, tiny_neox: TinyRun, hub_environment: Path
) -> None:
    fake_hub.redirect_large = fake_hub.redirect_small = redirected

    first = download(fake_hub, hub_environment, path)
    sent = fake_hub.body_bytes + fake_hub.cdn.body_bytes
    again = download(fake_hub, hub_environment, path)

    assert first == again and first.read_bytes() == (tiny_neox.checkpoints[8] / path).read_bytes()
    assert fake_hub.body_bytes + fake_hub.cdn.body_bytes == sent
    assert (fake_hub.cdn.num_requests["GET"] == 1) == (redirected and path == LARGE)
    commit = fake_hub.repo(REPO).branches["step8"]
    num_requests = len(fake_hub.log)
    assert first.parent.name == commit and download(fake_hub, hub_environment, path, revision=commit) == first
    assert len(fake_hub.log) == num_requests


def test_what_is_not_there_has_three_names(api: HfApi, fake_hub: FakeHub, hub_environment: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="401"):
        api.list_repo_refs("lab/none")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api.list_repo_refs("lab/none", token="hf_someone")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="step3")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision="step3"))
    with pytest.raises(RevisionNotFoundError):
        download(fake_hub, hub_environment, SMALL, revision="step3")
    with pytest.raises(EntryNotFoundError):
        download(fake_hub, hub_environment, "pytorch_model.bin")


def test_a_gated_repository_is_listed_and_not_downloaded(api: HfApi, fake_hub: FakeHub, hub_environment: Path) -> None:
    fake_hub.add_repo("lab/gated", {"main": {LARGE: b"weights"}}, gated="files")
    fake_hub.add_repo("lab/closed", {"main": {LARGE: b"weights"}}, gated="all")

    def ask(token: Any) -> Path:
        return download(fake_hub, hub_environment, LARGE, "lab/gated", revision="main", token=token)

    assert api.model_info("lab/gated").gated == "auto"
    assert [entry.path for entry in api.list_repo_tree("lab/gated")] == [LARGE]
    with pytest.raises(GatedRepoError, match="401"):
        ask(False)
    with pytest.raises(GatedRepoError, match="403"):
        ask("hf_of_someone_else")
    with pytest.raises(GatedRepoError):
        api.auth_check("lab/gated")
    with pytest.raises(GatedRepoError):
        api.list_repo_refs("lab/closed")
    assert ask(fake_hub.token).read_bytes() == b"weights"
    assert api.list_repo_refs("lab/closed", token=fake_hub.token).branches[0].name == "main"


def test_a_token_is_not_sent_to_the_cdn(fake_hub: FakeHub, hub_environment: Path) -> None:
    download(fake_hub, hub_environment, LARGE, token=fake_hub.token)

    assert {seen.headers["authorization"] for seen in fake_hub.log} == {f"Bearer {fake_hub.token}"}
    assert [seen.method for seen in fake_hub.cdn.log] == ["GET"]
    assert "authorization" not in fake_hub.cdn.log[0].headers


def test_faults_of_a_hub_are_met_by_its_client(api: HfApi, fake_hub: FakeHub, hub_environment: Path) -> None:
    """What ours has to do itself: plain calls are not tried again, and of a body nothing but its size is checked."""
    fake_hub.plant(f"/api/models/{REPO}/refs", TooManyRequests(), ServerError())
    for status in (429, 500):
        with pytest.raises(HfHubHTTPError, match=str(status)):
            api.list_repo_refs(REPO)
    cdn, path = fake_hub.cdn, fake_hub.cdn_path(REPO, "step8", LARGE)
    content = fake_hub.file(REPO, "step8", LARGE).content
    cdn.plant(path, WrongSize(more=7), TruncatedBody(1000), Fine(), WrongContent())
    with pytest.raises(OSError, match=f"should be of size {len(content)} but has size {len(content) + 7}"):
        download(fake_hub, hub_environment, LARGE)
    assert download(fake_hub, hub_environment, LARGE).read_bytes() == content
    assert [seen.body_bytes for seen in cdn.log] == [len(content) + 7, 1000, len(content)]
    assert download(fake_hub, hub_environment / "other", LARGE).read_bytes() == inverted(content)


def test_a_process_needs_nothing_but_the_environment(fake_hub: FakeHub, hub_environment: Path) -> None:
    program = f"from huggingface_hub import hf_hub_download as get; print(get({REPO!r}, {SMALL!r}, revision='step8'))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert Path(done.stdout.strip()).is_relative_to(hub_environment)
    assert [seen.method for seen in fake_hub.log] == ["HEAD", "GET"]
