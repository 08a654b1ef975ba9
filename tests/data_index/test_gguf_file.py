"""GGUF headers, ours written by hand from the format's description, and damaged in every way that could cost memory."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import CorruptFile, ForensicsError, UnknownLayout, UnsafeFile
from data_index.gguf_file import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    kind, pack = (8, text) if isinstance(item[0], str) else (5, lambda n: struct.pack("<i", n))
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(map(pack, item))


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A file. Tensors: shape (rows, width), ggml's type number, bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, (shape, kind, content) in tensors.items():
        data += bytes(-len(data) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += content
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"name": "x", "n": 7, "list": ["a", "b"], "f": 1.5}, {"t": ((2, 3), 0, bytes(24))}))
    return path


def test_a_header_says_what_was_written(path: Path) -> None:
    found = read_gguf(path)

    assert found.metadata == {"name": "x", "n": 7, "list": ["a", "b"], "f": 1.5}
    assert found.tensors["t"].shape == (2, 3) and found.tensors["t"].offset == path.stat().st_size - 24


def test_a_file_cut_anywhere_in_its_header_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole) - 24):
        path.write_bytes(whole[:length])
        with pytest.raises(ForensicsError):
            read_gguf(path)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"GGML" + bytes(40), CorruptFile, "no GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), UnknownLayout, "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), UnknownLayout, "byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), UnsafeFile, "metadata keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), UnsafeFile, "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + bytes(60), UnsafeFile, "bytes of text"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**61),
            UnsafeFile,
            "texts",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2**61),
            UnsafeFile,
            "lists of lists",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 0, 2**61),
            UnsafeFile,
            "numbers",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), CorruptFile, "unknown type"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 99) + bytes(40),
            CorruptFile,
            "99 dimensions",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0),
            UnsafeFile,
            "cannot have the shape",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQQIQ", 2, 1, 1, 0, 2**50),
            CorruptFile,
            "behind its end",
        ),
        (gguf({"general.alignment": 0}, {}), CorruptFile, "alignment"),
    ],
)
def test_absurd_claims_are_refused_before_anything_is_allocated(
    tmp_path: Path, content: bytes, error: type[Exception], said: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    with pytest.raises(error, match=said):
        read_gguf(path)
