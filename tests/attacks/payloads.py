"""Pickles that would run code, by every way that a pickle has to name a function, and archives around them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(canary: Path) -> bytes:
    """Opcodes that run a shell command, which leaves a file behind."""
    return b"cposix\nsystem\n" + text(f"touch '{canary}'") + b"\x85R"


def python(canary: Path) -> bytes:
    return text(f"__import__('pathlib').Path({str(canary)!r}).touch()")


METADATA = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89}tR"

TERA = b"\x8a\x06" + (10**13).to_bytes(6, "little")

# A pickle's body: everything between its protocol and its end.
CARRIERS: dict[str, Callable[[Path], bytes]] = {
    "a call": call,
    "a call in a list of calls": lambda canary: b"](" + call(canary) * 3 + b"e",
    "STACK_GLOBAL": lambda canary: text("posix") + text("system") + b"\x93" + text(f"touch '{canary}'") + b"\x85R",
    "INST": lambda canary: b"(" + text(f"touch '{canary}'") + b"iposix\nsystem\n",
    "OBJ": lambda canary: b"(cposix\nsystem\n" + text(f"touch '{canary}'") + b"o",
    "NEWOBJ": lambda canary: b"csubprocess\nPopen\n" + text(f"touch '{canary}'") + b"\x85\x81",
    "eval": lambda canary: b"cbuiltins\neval\n" + python(canary) + b"\x85R",
    "exec of Python 2": lambda canary: b"c__builtin__\nexec\n" + python(canary) + b"\x85R",
    "a dict's key": lambda canary: b"}" + call(canary) + b"Ns",
    "a persistent id": lambda canary: b"(" + text("storage") + call(canary) + text("0") + text("cpu") + b"K\x02tQ",
    "a whole persistent id": lambda canary: call(canary) + b"Q",
    "a storage's key": lambda canary: (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + call(canary) + text("cpu") + b"K\x02tQ"
    ),
    "a tensor's shape": lambda canary: TENSOR.replace(b"K\x02\x85K\x01", call(canary) + b"\x85K\x01"),
    "the state of a record": lambda canary: METADATA + b")\x81}" + text("a") + call(canary) + b"sb",
    "the slots of a record": lambda canary: METADATA + b")\x81N}" + text("a") + call(canary) + b"s\x86b",
    "the state of a class": lambda canary: METADATA + b"}" + text("__setstate__") + b"cposix\nsystem\nsb",
    "the state of a tensor": lambda canary: TENSOR + b"](NK\x00" + TERA + b"\x85K\x00\x85eb",
    "an attribute of a class": lambda canary: b"c__builtin__\ngetattr\n(ctorch\nSize\n" + text("_call") + b"tR",
    "a dotted name": lambda canary: (
        b"\x8c\x05torch\x8c\x15hub.load_state_dict_from_url"[:8]
        + text("hub.load")
        + b"\x93"
        + text(str(canary))
        + b"\x85R"
    ),
    "an array of objects": lambda canary: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01K\x01\x85"
        b"cnumpy\ndtype\n(" + text("O8") + b"K\x00K\x01tR\x89](" + call(canary) + b"etb"
    ),
    "torch.load of a second file": lambda canary: b"ctorch\nload\n" + text(str(canary)) + b"\x85R",
    "a class of this toolkit": lambda canary: (
        b"cdata_index.files\nremove_folder\n" + text(str(canary.parent)) + b"\x85R"
    ),
}


def doubled(times: int) -> bytes:
    """A tuple of a tuple with itself, and so on: 2**times values, written out."""
    return b")" + b"2\x86" * times


# Bodies that name nothing forbidden and ask for what would never end.
BOASTS: dict[str, bytes] = {
    "a memo of gigabytes": b"K\x01r" + struct.pack("<I", 2**31 - 1),
    "text of exabytes": b"\x8d" + struct.pack("<Q", 2**60) + b"x",
    "bytes of exabytes": b"\x8e" + struct.pack("<Q", 2**60) + b"x",
    "bytes of gigabytes": b"B" + struct.pack("<I", 2**32 - 1) + b"x",
    "a frame of exabytes": b"\x95" + struct.pack("<Q", 2**62) + b"N",
    "a byte array of exabytes": b"\x96" + struct.pack("<Q", 2**60) + b"x",
    "a value that unfolds": doubled(60),
    "a value that unfolds as a dict": b"}" + b"".join(b"q%c}(K\x00h%cK\x01h%cu" % (n, n, n) for n in range(60)),
    "a storage's key that unfolds": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + doubled(60) + text("cpu") + b"K\x02tQ"
    ),
    "an encoding that unfolds": b"c_codecs\nencode\n" + text("a") + doubled(60) + b"\x86R",
    "a device that unfolds": b"ctorch\ndevice\n" + doubled(60) + b"\x85R" + doubled(60) + b"\x86",
    "an attribute that unfolds": b"c__builtin__\ngetattr\nctorch\nSize\n" + doubled(60) + b"\x86R",
    "a dtype that unfolds": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01K\x01\x85"
        b"cnumpy\ndtype\n" + doubled(60) + b"\x85R\x89C\x08aaaaaaaatb"
    ),
    "a state that unfolds": METADATA + b")\x81}" + text("state_dict_metadata") + doubled(60) + b"sb",
    "a list in itself": b"]q\x00h\x00a",
    "lists in lists in lists": b"]" * 20_000 + b"a" * 19_999,
    "integers of one hash": b"}(" + b"".join(
        b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(16, 2016)
    ) + b"u",
    "an integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a tensor of terabytes": TENSOR.replace(b"K\x02\x85K\x01\x85", TERA + b"\x85K\x00\x85"),
    "a storage of terabytes": TENSOR.replace(b"K\x02tQ", TERA + b"tQ"),
    "a shape beyond 64 bits": TENSOR.replace(
        b"K\x02\x85K\x01\x85", b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x04\x87K\x00K\x00K\x00\x87"
    ),
}  # fmt: skip


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def archive(pickle: bytes, storage: bytes = bytes(8), compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickle)
        file.writestr("archive/data/0", storage)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()
