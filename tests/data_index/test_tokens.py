"""Token rows are the bytes of the files, and every block that is read is checked."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_index.batch_queries import reader_of
from data_index.errors import CorruptFile, MissingFile, UnknownInstance
from data_index.files import BLOCK_BYTES, sha256_of_blocks
from data_index.run import Run
from data_index.run_file import read_run
from data_index.tokens import BlockHashes, TokenReader
from data_index.workspace import Workspace

LENGTH = 1000  # tokens, 2000 bytes: instance 2097 lies across the border of blocks 0 and 1


@pytest.fixture
def large(tiny_source: Path, tmp_path: Path) -> Run:
    """A run of one file of three blocks, the last one short."""
    path = tmp_path / "large.bin"
    np.random.default_rng(0).integers(0, 2**16, 5_000 * LENGTH, dtype="<u2").tofile(path)
    run = read_run(tiny_source)
    file = replace(run.files[0], name="large.bin", path=path, num_bytes=path.stat().st_size, num_instances=5_000)
    return replace(run, files=(file,), sequence_length=LENGTH)


def hashes_of(run: Run) -> BlockHashes:
    return {(file.name, n): h for file in run.files for n, h in enumerate(sha256_of_blocks(file.path))}


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tiny", "core"])
def test_every_instance_is_its_bytes(name: str, request: pytest.FixtureRequest) -> None:
    """Instances are counted file after file; what fills no row at a file's end belongs to none."""
    workspace: Workspace = request.getfixturevalue(f"{name}_shared")
    run = workspace.run(name)
    rows = []
    for file in run.files:
        tokens = np.fromfile(file.path, dtype="<u2")
        rows.append(tokens[: len(tokens) // run.sequence_length * run.sequence_length].reshape(-1, run.sequence_length))
    known = np.concatenate(rows).astype(np.int64)
    reader = reader_of(workspace, run)

    assert len(known) == run.num_instances
    assert np.array_equal(reader.rows(range(run.num_instances)), known)
    assert np.array_equal(reader.rows([7, 3, 7]), known[[7, 3, 7]])
    assert reader.rows([]).shape == (0, run.sequence_length)
    assert reader.first_seen == {}


def test_a_file_without_instances_takes_no_number(tiny_source: Path, tmp_path: Path) -> None:
    """Three files, the middle one shorter than a row."""
    (tmp_path / "empty").write_bytes(b"")
    run = read_run(tiny_source)
    first, last = run.files
    empty = replace(first, name="empty", path=tmp_path / "empty", num_bytes=0, num_instances=0)
    between = replace(run, files=(first, replace(empty, first_instance=last.first_instance), last))
    behind = replace(run, files=(first, last, replace(empty, first_instance=run.num_instances)))
    known = TokenReader(run, None).rows(range(run.num_instances))

    for other in (between, behind):
        assert np.array_equal(TokenReader(other, {}).rows(range(run.num_instances)), known)


@pytest.mark.parametrize("instance", [-1, 10**9])
def test_an_instance_that_is_not_there_is_unknown(instance: int, tiny_shared: Workspace) -> None:
    run = tiny_shared.run("tiny")

    with pytest.raises(UnknownInstance, match=f"tiny has instances 0..{run.num_instances - 1}, not {instance}"):
        TokenReader(run, None).rows([0, instance])


def test_a_flipped_bit_names_the_file_and_the_block(large: Run) -> None:
    hashes = hashes_of(large)
    flip(large.files[0].path, BLOCK_BYTES + 12_345)
    reader = TokenReader(large, hashes)

    assert reader.rows([0, 2096, 4999]).shape == (3, LENGTH)
    for instance in (2097, 2103, 4000):
        with pytest.raises(CorruptFile, match=r"large.bin changed: block 1 .bytes 4,194,304..8,388,608. of large.bin"):
            reader.rows([instance])


def test_the_short_block_at_the_end_is_checked_too(large: Run) -> None:
    hashes = hashes_of(large)
    flip(large.files[0].path, 9_999_999)

    with pytest.raises(CorruptFile, match=r"block 2 .bytes 8,388,608..10,000,000.*restore the file, or .*--no-verify"):
        TokenReader(large, hashes).rows([4999])


def test_without_verifying_the_file_is_read_as_it_is(large: Run) -> None:
    known = TokenReader(large, None).rows([2103])[0]
    flip(large.files[0].path, 2103 * LENGTH * 2)

    (row,) = TokenReader(large, None).rows([2103])
    assert row[0] == known[0] ^ 1
    assert np.array_equal(row[1:], known[1:])


def test_blocks_without_a_hash_are_remembered_when_first_seen(large: Run) -> None:
    reader = TokenReader(large, {("large.bin", 0): sha256_of_blocks(large.files[0].path)[0]})
    reader.rows([0])
    assert reader.first_seen == {}

    reader.rows([2097, 2500])
    raw = large.files[0].path.read_bytes()[BLOCK_BYTES : 2 * BLOCK_BYTES]
    assert reader.first_seen == {("large.bin", 1): hashlib.sha256(raw).hexdigest()}


def test_a_truncated_file_is_corrupt(large: Run) -> None:
    path = large.files[0].path
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(CorruptFile, match="large.bin has 9,999,998 bytes; tiny was indexed with 10,000,000: it was"):
        TokenReader(large, None).rows([0])


def test_a_file_that_is_gone_is_missing(large: Run) -> None:
    large.files[0].path.unlink()

    with pytest.raises(MissingFile, match="large.bin, a token file of tiny, is not there"):
        TokenReader(large, None).rows([0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_tokens_are_little_endian_of_the_stated_width(dtype: str, large: Run) -> None:
    tokens = np.arange(2 * LENGTH) % 251
    file = replace(large.files[0], dtype=dtype, num_bytes=tokens.size * np.dtype(dtype).itemsize, num_instances=2)
    tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(file.path)

    assert np.array_equal(TokenReader(replace(large, files=(file,)), {}).rows([0, 1]).reshape(-1), tokens)
