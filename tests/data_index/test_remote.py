"""Ranges of files from a real server on loopback, which errs in every way that servers do.

However it errs, what comes back is the file's bytes or a stated error, and never anything else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_index.errors import (
    AccessDenied,
    ChangedFile,
    CorruptFile,
    MissingFile,
    NotWritable,
    Offline,
    Unreachable,
)
from data_index.remote import connection, http
from data_index.remote.connection import TRAFFIC
from data_index.remote.files import RemoteFiles, with_sizes
from data_index.remote.path import RemotePath
from data_index.remote.ranges import bytes_to_fetch, coalesced, fetch_ranges
from tests.servers import faults
from tests.servers.range_server import RangeServer

CONTENT = np.random.default_rng(1).integers(0, 256, 400_000, dtype=np.uint8).tobytes()
FILE = "/data/part-0.npy"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, hub_environment: Path) -> None:
    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(connection, "READ_SECONDS", 0.5)


@pytest.fixture
def server(range_server: RangeServer) -> RangeServer:
    range_server.files[FILE] = CONTENT
    return range_server


@pytest.fixture
def remote(server: RangeServer, tmp_path: Path) -> RemotePath:
    return RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=len(CONTENT))


def again(remote: RemotePath) -> RemotePath:
    """The same file for a process that starts anew: nothing is known but what lies on disk."""
    from data_index.remote.path import _range_cache

    _range_cache.cache_clear()
    return remote


# --- the bytes that are needed ---------------------------------------------------------------------------------------


def test_a_stretch_is_one_request_and_its_own_bytes(server: RangeServer, remote: RemotePath) -> None:
    assert remote.read(1000, 201_000) == CONTENT[1000:201_000]

    assert server.num_requests == {"GET": 1}
    assert server.body_bytes == 200_000


def test_what_was_fetched_is_not_fetched_again(server: RangeServer, remote: RemotePath) -> None:
    remote.read(1000, 5000)
    remote.read(9000, 9500)

    assert again(remote).read(2000, 4000) == CONTENT[2000:4000]
    assert server.body_bytes == 4500
    assert remote.read(500, 10_000) == CONTENT[500:10_000]
    assert server.body_bytes == 9500  # the gaps alone


def test_the_counter_says_what_the_server_sent(server: RangeServer, remote: RemotePath) -> None:
    requests, num_bytes = TRAFFIC.num_requests, TRAFFIC.num_bytes
    server.plant(FILE, faults.TruncatedBody(700), faults.ServerError())
    remote.read(0, 10_000)

    assert TRAFFIC.num_bytes - num_bytes == 10_000
    assert server.body_bytes < 10_100  # the words of its refusal besides
    assert TRAFFIC.num_requests - requests == 3


def test_near_stretches_are_joined_and_far_ones_fetched_side_by_side(server: RangeServer, remote: RemotePath) -> None:
    stretches = [(remote, start, start + 2000) for start in range(0, 390_000, 3000)]
    near = [(remote, 390_000, 394_000), (remote, 394_020, 398_000)]

    fetched = fetch_ranges([*stretches, *near])

    needed = 130 * 2000 + 7980
    assert needed <= fetched == server.body_bytes <= 1.05 * needed
    assert 100 < server.num_requests["GET"] < 131  # some gaps are worth a request, most are not
    assert server.num_connections <= connection.PARALLEL_REQUESTS
    assert all(remote.read(start, stop) == CONTENT[start:stop] for _, start, stop in [*stretches, *near])
    assert server.body_bytes == fetched


@pytest.mark.parametrize("seed", range(20))
def test_joined_stretches_cover_all_and_little_more(seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = np.sort(random.integers(0, 10**6, 300))
    parts = [(int(start), int(start + size)) for start, size in zip(starts, random.integers(1, 9000, 300), strict=True)]

    joined = coalesced(parts)

    wanted = np.zeros(1_010_000, dtype=bool)
    got = wanted.copy()
    for start, stop in parts:
        wanted[start:stop] = True
    for start, stop in joined:
        got[start:stop] = True
    assert not (wanted & ~got).any()
    assert got.sum() <= 1.05 * wanted.sum()
    assert all(before[1] < after[0] for before, after in pairwise(joined))


def test_what_would_be_fetched_is_told_without_fetching(server: RangeServer, remote: RemotePath) -> None:
    remote.read(0, 1000)

    assert bytes_to_fetch([(remote, 0, 3000), (remote, 2000, 4000)]) == 3000
    assert server.body_bytes == 1000


def test_a_file_is_read_and_sought_in_like_one_on_disk(remote: RemotePath) -> None:
    with remote.open() as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == CONTENT[-10:]
        file.seek(100)
        assert file.read(50) == CONTENT[100:150]
        assert file.tell() == 150


# --- faults ----------------------------------------------------------------------------------------------------------

PASSING = {
    "429": [faults.TooManyRequests()],
    "429 with a time": [faults.TooManyRequests(retry_after=0)],
    "500": [faults.ServerError(500)],
    "503 twice": [faults.ServerError(503)] * 2,
    "no answer": [faults.BrokenConnection()],
    "broken off": [faults.BrokenConnection(after=1500)],
    "truncated": [faults.TruncatedBody(1234)],
    "truncated again and again": [faults.TruncatedBody(500)] * 8,
    "less than it says": [faults.ShortBody(1234), faults.ShortBody(0)],
    "too slow": [faults.Slow(before=2.0)],
    "stuck": [faults.Slow(inside=2.0)],
    "another range": [faults.WrongRange(shift=64)],
    "all of it at once": [
        *(faults.ServerError(500), faults.TruncatedBody(100), faults.TooManyRequests()),
        *(faults.BrokenConnection(after=300), faults.WrongRange()),
    ],
}


@pytest.mark.parametrize("planted", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_leaves_the_right_bytes(
    planted: list[faults.Fault], server: RangeServer, remote: RemotePath
) -> None:
    server.plant(FILE, *planted)

    assert remote.read(2000, 9000) == CONTENT[2000:9000]
    assert again(remote).read(2000, 9000) == CONTENT[2000:9000]


LASTING = {
    "404": (faults.NotFound(), MissingFile, "is not there"),
    "500": (faults.ServerError(500), Unreachable, "answers 500, 6 times in a row"),
    "429": (faults.TooManyRequests(), Unreachable, "answers 429"),
    "no answer": (faults.BrokenConnection(), Unreachable, "6 times in a row"),
    "too slow": (faults.Slow(before=2.0), Unreachable, "[Tt]imed? ?out"),
    "nothing of what it says": (faults.ShortBody(0), Unreachable, "ended 6,000 bytes early, 6 times in a row"),
    "another range": (faults.WrongRange(shift=64), Unreachable, "when asked for 3000-8999"),
    "no ranges": (faults.IgnoresRange(), Unreachable, "ignores ranges"),
    "another tag and content": (faults.ChangedEtag(), ChangedFile, "changed"),
    "another size": (faults.WrongSize(more=10), ChangedFile, "changed"),
    "smaller": (faults.WrongSize(more=-10), ChangedFile, "changed"),
}


@pytest.mark.parametrize(("fault", "error", "said"), LASTING.values(), ids=LASTING)
def test_a_fault_that_lasts_is_a_clear_error_and_loses_nothing(
    fault: faults.Fault, error: type[Exception], said: str, server: RangeServer, remote: RemotePath
) -> None:
    remote.read(0, 3000)
    server.plant(FILE, fault, forever=True)

    with pytest.raises(error, match=said):
        remote.read(2000, 9000)
    assert again(remote).read(0, 3000) == CONTENT[:3000]
    server.heal()
    assert remote.read(0, 9000) == CONTENT[:9000]


def test_a_truncated_body_keeps_what_came(server: RangeServer, remote: RemotePath) -> None:
    """A server that always breaks off after some bytes gives them all in the end, each once."""
    server.plant(FILE, faults.TruncatedBody(3000), forever=True)

    assert remote.read(0, 20_000) == CONTENT[:20_000]
    assert server.body_bytes == 20_000


def test_wrong_content_in_the_right_size_is_told_by_the_stated_hash(server: RangeServer, tmp_path: Path) -> None:
    stated = hashlib.sha256(CONTENT).hexdigest()
    remote = RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=len(CONTENT), sha256=stated)
    server.plant(FILE, faults.WrongContent(), forever=True)

    with pytest.raises(CorruptFile, match="wrong content in the right size"):
        remote.download()
    with pytest.raises(CorruptFile, match="wrong content in the right size"):
        remote.read_all()
    server.heal()
    assert remote.download().read_bytes() == CONTENT


def test_parts_that_make_up_a_file_are_compared_with_its_hash_at_last(server: RangeServer, tmp_path: Path) -> None:
    """No hash of a stretch is stated; that one was wrong comes out when the file is whole."""
    stated = hashlib.sha256(CONTENT).hexdigest()
    remote = RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=len(CONTENT), sha256=stated)
    server.plant(FILE, faults.WrongContent())
    remote.read(0, 100_000)

    with pytest.raises(CorruptFile, match="wrong content"):
        remote.read(0, len(CONTENT))
    assert remote.read(0, len(CONTENT)) == CONTENT


def test_bytes_that_were_changed_on_disk_are_fetched_again(server: RangeServer, remote: RemotePath) -> None:
    remote.read(0, 5000)
    (kept,) = (path for path in remote.cache.rglob("bytes"))
    damaged = bytearray(kept.read_bytes())
    damaged[1234] ^= 1
    kept.write_bytes(damaged)

    assert again(remote).read(0, 5000) == CONTENT[:5000]
    assert server.body_bytes == 10_000


@pytest.mark.parametrize("cut", [1, 20, 47])
def test_a_record_that_was_cut_short_is_no_record(cut: int, server: RangeServer, remote: RemotePath) -> None:
    remote.read(0, 100)
    remote.read(200, 300)
    (log,) = remote.cache.rglob("extents")
    os.truncate(log, log.stat().st_size - cut)

    assert again(remote).read(200, 300) == CONTENT[200:300]
    assert again(remote).read(0, 300) == CONTENT[:300]
    assert server.body_bytes == 400


def test_a_byte_past_the_end_is_an_error(remote: RemotePath, server: RangeServer) -> None:
    with pytest.raises(CorruptFile, match="has 400,000 bytes"):
        remote.read(399_990, 400_010)


def test_a_file_that_is_shorter_than_a_manifest_says(server: RangeServer, tmp_path: Path) -> None:
    remote = RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=500_000)

    with pytest.raises(CorruptFile, match="shorter than it was said to be"):
        remote.read(450_000, 450_100)


def test_a_manifest_that_contradicts_what_was_seen_is_an_error(remote: RemotePath, tmp_path: Path) -> None:
    remote.read(0, 10)

    with pytest.raises(ChangedFile, match="400,000 bytes when it was first looked at"):
        RemotePath(remote.url, remote.cache, num_bytes=400_001).read(20, 30)


def test_a_token_is_for_the_hub_alone(server: RangeServer, remote: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    remote.read(0, 10)
    remote.check()

    assert not any("authorization" in request.headers for request in server.log)


def test_a_refusal_says_what_to_do(server: RangeServer, remote: RemotePath) -> None:
    server.plant(FILE, faults.ServerError(403), forever=True)

    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        remote.read(0, 10)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "http://", "nothing"])
def test_what_is_no_address_of_the_web_is_not_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises((Unreachable, MissingFile)):
        RemotePath(url, tmp_path, num_bytes=10).read(0, 5)


def test_offline_reads_what_is_kept_and_names_what_is_not(
    server: RangeServer, remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.read(0, 1000)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert again(remote).read(100, 900) == CONTENT[100:900]
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        remote.read(900, 1100)
    assert server.num_requests == {"GET": 1}


# --- killed ----------------------------------------------------------------------------------------------------------

DOWNLOAD = """
import sys
from pathlib import Path
from data_index.remote import path
path.REQUEST_BYTES = 10_000
print(path.RemotePath(sys.argv[1], Path(sys.argv[2]), num_bytes=int(sys.argv[3]), sha256=sys.argv[4]).download())
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_download_goes_on_and_ends_equal(kill: signal.Signals, server: RangeServer, tmp_path: Path) -> None:
    stated = hashlib.sha256(CONTENT).hexdigest()
    command = [sys.executable, "-c", DOWNLOAD, server.url(FILE), str(tmp_path / "c"), str(len(CONTENT)), stated]
    server.plant(FILE, faults.Throttle(bytes_per_second=100_000), forever=True)
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server.wait_for_bytes(250_000)  # more than all requests that run at once
    first.send_signal(kill)
    assert first.wait(20) != 0
    server.heal()
    sent = server.body_bytes

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
    assert 0 < server.body_bytes - sent < len(CONTENT)  # not from the start again


def test_two_processes_fetch_the_same_file_at_once(server: RangeServer, tmp_path: Path) -> None:
    stated = hashlib.sha256(CONTENT).hexdigest()
    command = [sys.executable, "-c", DOWNLOAD, server.url(FILE), str(tmp_path / "c"), str(len(CONTENT)), stated]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]

    for process in both:
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert Path(out.strip()).read_bytes() == CONTENT


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(server: RangeServer, tmp_path: Path) -> Iterator[dict[str, RemotePath]]:
    for number in range(40):
        server.files[f"/many/{number}.npy"] = CONTENT[: 100 * number]
    yield {f"{n}.npy": RemotePath(server.url(f"/many/{n}.npy"), tmp_path / "cache") for n in range(40)}


def test_sizes_are_asked_without_fetching(server: RangeServer, many: dict[str, RemotePath]) -> None:
    sized = with_sizes(many)

    assert [sized[f"{n}.npy"].num_bytes for n in range(40)] == [100 * n for n in range(40)]
    assert server.num_requests == {"HEAD": 40}
    assert server.body_bytes == 0


def test_sizes_that_were_answered_before_are_not_asked_again(server: RangeServer, many: dict[str, RemotePath]) -> None:
    server.plant("/many/30.npy", faults.NotFound(), forever=True)
    with pytest.raises(MissingFile, match=r"30\.npy"):
        with_sizes(many)
    server.heal()
    answered = sum(request.status == 200 for request in server.log)

    with_sizes(many)

    assert server.num_requests["HEAD"] <= 41
    assert answered > 0


def test_a_server_without_head_is_asked_for_one_byte(server: RangeServer, remote: RemotePath, tmp_path: Path) -> None:
    server.plant(FILE, faults.ServerError(405), forever=True, method="HEAD")

    assert RemotePath(remote.url, tmp_path / "other").size() == len(CONTENT)
    assert server.body_bytes == 1


def test_a_name_of_a_config_finds_its_file(tmp_path: Path) -> None:
    def at(path: str) -> RemotePath:
        return RemotePath(f"https://example.org/{path}", tmp_path)

    files = RemoteFiles(origin="x", files={name: at(name) for name in ("a/b/part-0.npy", "a/c/part-0.npy", "d/e.npy")})

    assert files.find("a/b/part-0.npy") == at("a/b/part-0.npy")
    assert files.find("/somewhere/else/c/part-0.npy") == at("a/c/part-0.npy")
    assert files.find("s3://bucket/e.npy") == at("d/e.npy")
    assert files.find("part-0.npy") is None  # which of the two?
    assert files.find("part-1.npy") is None
    assert files.find("") is None


def test_progress_is_told(server: RangeServer, remote: RemotePath) -> None:
    told: list[tuple[int, int]] = []

    fetch_ranges([(remote, start, start + 10) for start in range(0, 100_000, 20_000)], lambda *now: told.append(now))

    assert told[-1] == (50, 50)


# --- what a review found ---------------------------------------------------------------------------------------------


def test_two_versions_of_a_file_are_not_mixed_in_the_first_parallel_fetch(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest states a size and no tag: which tag counts is decided once for all threads."""
    monkeypatch.setattr("data_index.remote.ranges.REQUEST_BYTES", 20_000)
    remote = RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=len(CONTENT))
    server.plant(FILE, *[faults.Fine()] * 8, faults.ChangedEtag(), forever=True)

    with pytest.raises(ChangedFile, match="delete .* to begin anew"):
        fetch_ranges([(remote, 0, len(CONTENT))])
    kept = again(remote).kept()
    with kept.bytes_path.open("rb") as file:
        content = file.read()
    for start, stop, _ in kept._extents:
        assert content[start:stop] == CONTENT[start:stop]


def test_without_tags_the_time_of_change_counts(server: RangeServer, remote: RemotePath) -> None:
    known = http.Known(http.RemoteState(num_bytes=5, modified="Mon, 01 Jan 2024 00:00:00 GMT"))

    known.compare("u", http.RemoteState(num_bytes=5, modified="Mon, 01 Jan 2024 00:00:00 GMT"))
    with pytest.raises(ChangedFile):
        known.compare("u", http.RemoteState(num_bytes=5, modified="Tue, 02 Jan 2024 00:00:00 GMT"))


def test_what_one_process_forgot_is_not_given_out_by_another(remote: RemotePath) -> None:
    from data_index.remote.range_cache import RangeCache

    one, other = (RangeCache(remote.kept().folder, remote.url) for _ in range(2))
    one.write(0, b"wrong" * 10)
    assert other.read(0, 50) == b"wrong" * 10
    one.forget()
    one.write(0, b"right" * 10)

    assert other.read(0, 50) == b"right" * 10


def test_reads_that_overlap_do_not_disturb_each_other(server: RangeServer, remote: RemotePath) -> None:
    from concurrent.futures import ThreadPoolExecutor

    random = np.random.default_rng(3)
    parts = [tuple(sorted(pair)) for pair in random.integers(0, len(CONTENT), (60, 2)).tolist()]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda part: remote.read(*part), parts))

    assert all(content == CONTENT[start:stop] for content, (start, stop) in zip(read, parts, strict=True))


def test_what_came_before_a_server_fell_silent_is_kept(server: RangeServer, remote: RemotePath) -> None:
    server.plant(FILE, faults.TruncatedBody(9000), faults.BrokenConnection(), forever=True)

    with pytest.raises(Unreachable):
        remote.read(0, 300_000)

    assert again(remote).kept().covers(0, 9000)


def test_a_server_that_trickles_is_given_up(
    server: RangeServer, remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SLOW_SECONDS", 0.2)
    server.plant(FILE, faults.Throttle(bytes_per_second=100), forever=True)

    with pytest.raises(Unreachable, match=r"bytes came in 0 s, 6 times in a row"):
        remote.read(0, 100_000)


def test_one_flipped_bit_in_the_record_of_stretches_heals(server: RangeServer, remote: RemotePath) -> None:
    remote.read(0, 5000)
    (log,) = remote.cache.rglob("extents")
    content = bytearray(log.read_bytes())
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        log.write_bytes(damaged)
        assert again(remote).read(0, 5000) == CONTENT[:5000]


def test_a_whole_file_that_was_never_compared_is_compared_before_it_is_given_out(
    server: RangeServer, tmp_path: Path
) -> None:
    """Killed between the last byte and the comparison."""
    stated = hashlib.sha256(CONTENT).hexdigest()
    remote = RemotePath(server.url(FILE), tmp_path / "cache", num_bytes=len(CONTENT), sha256=stated)
    remote.kept().remember(http.RemoteState(num_bytes=len(CONTENT)))
    remote.kept().write(0, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))

    with pytest.raises(CorruptFile, match="wrong content"):
        again(remote).read(0, 100)
    assert remote.read(0, 100) == CONTENT[:100]
    (kept,) = remote.cache.rglob("bytes")
    kept.unlink()
    assert again(remote).read(0, 100) == CONTENT[:100]


def test_a_failing_file_does_not_wait_for_silent_ones(server: RangeServer, tmp_path: Path) -> None:
    paths = []
    for number in range(8):
        server.files[f"/silent/{number}"] = CONTENT
        server.plant(f"/silent/{number}", faults.Slow(before=30.0), forever=True)
        paths.append(RemotePath(server.url(f"/silent/{number}"), tmp_path, num_bytes=len(CONTENT)))
    gone = RemotePath(server.url("/gone"), tmp_path, num_bytes=10)
    began = time.monotonic()

    with pytest.raises(MissingFile):
        fetch_ranges([(path, 0, 10) for path in [*paths, gone]])

    assert time.monotonic() - began < 20  # not 6 times 30 s for each


def test_a_small_file_of_a_server_without_ranges_is_fetched_whole(server: RangeServer, tmp_path: Path) -> None:
    server.files["/small.json"] = CONTENT[:5000]
    server.plant("/small.json", faults.IgnoresRange(), forever=True)
    small = RemotePath(server.url("/small.json"), tmp_path / "cache")

    assert small.read(1000, 2000) == CONTENT[1000:2000]
    assert small.read_all() == CONTENT[:5000]


def test_sizes_of_long_ago_are_asked_again(server: RangeServer, many: dict[str, RemotePath]) -> None:
    with_sizes(many)
    server.files["/many/5.npy"] = CONTENT[:777]
    assert with_sizes(many)["5.npy"].num_bytes == 500
    for about in next(iter(many.values())).cache.rglob("about.json"):
        os.utime(about, (0, 0))

    assert with_sizes(many)["5.npy"].num_bytes == 777


def test_a_cache_that_cannot_be_written_says_so(remote: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(NotWritable, match="Read-only file system"):
        remote.read(0, 10)
