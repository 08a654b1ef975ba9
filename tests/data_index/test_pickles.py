"""Checkpoints are read without torch, and nothing in them is run."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_index.dcp import DcpPiece, read_dcp_metadata
from data_index.errors import CorruptFile, UnsafeFile
from data_index.pickles import TensorRecord, TorchArchive, read_pickle, read_torch_archive
from data_index.stand_ins import ALLOWED

STEP10 = Path(__file__).parents[1] / "fixtures" / "olmo-core" / "main" / "ckpt" / "step10"
RANK0 = STEP10 / "train" / "rank0.pt"
MODEL_AND_OPTIM = STEP10 / "model_and_optim"


def archive(pickled: bytes) -> bytes:
    """A file as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def array_of(file: TorchArchive, record: TensorRecord) -> np.ndarray:
    raw = np.frombuffer(file.storage_bytes(record), dtype=record.storage.dtype)[record.offset :]
    return np.lib.stride_tricks.as_strided(raw, record.shape, [raw.itemsize * stride for stride in record.strides])


def same(file: TorchArchive, ours: Any, torchs: Any) -> bool:
    """Is our reading of a value torch's reading of it, to the last bit?"""
    if isinstance(torchs, torch.Tensor):
        array = array_of(file, ours)
        return array.tobytes() == torchs.numpy().tobytes() and array.shape == tuple(torchs.shape)
    if isinstance(torchs, np.ndarray):
        return ours.dtype == torchs.dtype and np.array_equal(ours, torchs)
    if isinstance(torchs, dict):
        return list(ours) == list(torchs) and all(same(file, ours[key], torchs[key]) for key in torchs)
    if isinstance(torchs, list | tuple):
        return len(ours) == len(torchs) and all(same(file, a, b) for a, b in zip(ours, torchs, strict=True))
    return bool(ours == torchs)


# --- what is there is read as torch reads it -------------------------------------------------------------------------


def test_a_trainer_state_is_what_torch_reads() -> None:
    file = read_torch_archive(RANK0)
    known = torch.load(RANK0, weights_only=False)

    assert file.value["global_step"] == 10
    assert isinstance(file.value["rng"]["torch"]["state"], TensorRecord)
    assert same(file, file.value, known)


def test_every_item_of_a_distributed_checkpoint_is_what_torch_reads() -> None:
    entries = read_dcp_metadata(MODEL_AND_OPTIM)

    assert len(entries) == 752
    for entry in entries.values():
        assert sum(int(np.prod(piece.sizes)) for piece in entry.pieces) == np.prod(entry.shape)
        for piece in entry.pieces:
            content = piece.path.read_bytes()[piece.offset : piece.offset + piece.length]
            known = torch.load(io.BytesIO(content), weights_only=False)
            file = piece.open()
            assert same(file, file.value, known), entry.name
            assert entry.dtype is None or known.dtype == getattr(torch, entry.dtype)
            assert entry.dtype is None or tuple(known.shape) == piece.sizes


# --- nothing is run --------------------------------------------------------------------------------------------------

SHELL = "touch {marker}"
PYTHON = "__import__('pathlib').Path({marker!r}).touch()"
HOSTILE = {  # module, name: its argument
    ("os", "system"): SHELL,
    ("posix", "system"): SHELL,
    ("subprocess", "getoutput"): SHELL,
    ("builtins", "eval"): PYTHON,
    ("builtins", "exec"): PYTHON,
    ("builtins", "__import__"): "antigravity",
    ("builtins", "getattr"): "x",
    ("__builtin__", "eval"): PYTHON,
    ("runpy", "run_path"): "{marker}",
    ("pickle", "loads"): "x",
    ("torch", "load"): "{marker}",
    ("torch.hub", "load"): "x",
    ("torch.serialization", "load"): "{marker}",
    ("torch.jit", "load"): "{marker}",
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): "x",
    ("numpy", "load"): "{marker}",
    ("collections", "OrderedDict.fromkeys"): "x",
    ("data_index.files", "remove_folder"): "{marker}",
}
SOME = [("posix", "system"), ("builtins", "eval"), ("torch", "load")]


def call(name: tuple[str, str], marker: Path, *, protocol: int = 2) -> bytes:
    """A pickle that calls a function, which would leave a marker."""
    argument = HOSTILE[name].format(marker=str(marker))
    module, function, text = (b"X" + struct.pack("<I", len(part)) + part.encode() for part in (*name, argument))
    named = "c{}\n{}\n".format(*name).encode() if protocol == 2 else module + function + b"\x93"
    return bytes([0x80, protocol]) + named + text + b"\x85R."


def test_the_traps_work(tmp_path: Path) -> None:
    """The standard library's reader falls into them: what the next tests see is the refusal."""
    for number, name in enumerate([("posix", "system"), ("builtins", "eval")]):
        pickle.loads(call(name, tmp_path / str(number)))
        assert (tmp_path / str(number)).exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE, ids=".".join)
def test_a_pickle_that_names_a_callable_is_refused(name: tuple[str, str], protocol: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match=f"test.pkl names {'.'.join(name)}, which a checkpoint has no need of"):
        read_pickle(call(name, tmp_path / "marker", protocol=protocol), "test.pkl")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SOME, ids=".".join)
def test_a_hostile_torch_archive_is_refused(name: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "rank0.pt").write_bytes(archive(call(name, tmp_path / "marker")))

    with pytest.raises(UnsafeFile, match=f"rank0.pt names {'.'.join(name)}"):
        read_torch_archive(tmp_path / "rank0.pt")

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", SOME, ids=".".join)
def test_hostile_metadata_is_refused(name: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(call(name, tmp_path / "marker"))

    with pytest.raises(UnsafeFile, match=f"metadata names {'.'.join(name)}"):
        read_dcp_metadata(tmp_path)

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", SOME, ids=".".join)
def test_a_hostile_item_of_a_distributed_checkpoint_is_refused(name: tuple[str, str], tmp_path: Path) -> None:
    hostile = archive(call(name, tmp_path / "marker"))
    (tmp_path / "__0_0.distcp").write_bytes(b"before " + hostile + b" after")
    piece = DcpPiece(path=tmp_path / "__0_0.distcp", offset=7, length=len(hostile), starts=(), sizes=())

    with pytest.raises(UnsafeFile, match=f"__0_0.distcp .7:.*names {'.'.join(name)}"):
        piece.open()

    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("opcodes", [b"(i__main__\nA\n", b"(cos\nsystem\no", b"\x82\x01", b"\x83\x01\x00"])
def test_opcodes_that_find_a_class_by_another_way_are_refused(opcodes: bytes) -> None:
    with pytest.raises(UnsafeFile, match="uses the pickle opcode (INST|OBJ|EXT1|EXT2)"):
        read_pickle(b"\x80\x02" + opcodes + b".", "test.pkl")


def test_only_one_class_inside_another_can_be_named() -> None:
    """Sharded tensors need getattr for it; anything else that is asked of it is refused."""
    named = b"c__builtin__\ngetattr\n(ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\nX%c\x00\x00\x00%btR."
    for name in (b"__init__", b"__class__", b"__globals__"):
        with pytest.raises(UnsafeFile, match=f"asks for the attribute '{name.decode()}'"):
            read_pickle(b"\x80\x02" + named % (len(name), name), "test.pkl")
    with pytest.raises(UnsafeFile, match="asks for the attribute"):
        read_pickle(b"\x80\x02c__builtin__\ngetattr\n(ctorch\nSize\nX\x05\x00\x00\x00_calltR.", "test.pkl")


def test_only_tensors_are_rebuilt_from_their_type() -> None:
    head = b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
    for function, kind in [
        (b"ctorch\nSize\n", b"ctorch\nTensor\n"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n"),
        (b"ctorch._utils\n_rebuild_wrapper_subclass\n", b"ctorch\nTensor\n"),
    ]:
        with pytest.raises(UnsafeFile, match="neither a tensor nor a sharded tensor"):
            read_pickle(head + function + kind + b")}tR.", "test.pkl")


def test_paths_are_text(tmp_path: Path) -> None:
    torch.save({"folder": Path("run") / "step10"}, tmp_path / "train.pt")
    newer = b"\x80\x02cpathlib._local\nPosixPath\nX\x03\x00\x00\x00runX\x01\x00\x00\x00a\x86R."

    assert read_torch_archive(tmp_path / "train.pt").value == {"folder": "run/step10"}
    assert read_pickle(newer, "test.pkl") == "run/a"


@pytest.mark.parametrize(
    "build", [b"}X\x01\x00\x00\x00xK\x01sb", b"N}X\x01\x00\x00\x00xK\x01s\x86b"], ids=["state", "slots"]
)
def test_a_pickle_cannot_change_a_stand_in(build: bytes) -> None:
    """BUILD on the class itself would change what every later pickle gets."""
    for (module, name), stand_in in ALLOWED.items():
        with pytest.raises(CorruptFile):
            read_pickle(b"\x80\x02c" + f"{module}\n{name}\n".encode() + build + b".", "test.pkl")
        assert not hasattr(stand_in, "x"), name


# --- one tensor without the rest -------------------------------------------------------------------------------------


def test_of_an_archive_only_what_is_asked_for_is_read() -> None:
    path = Path(__file__).parents[1] / "fixtures" / "olmo" / "run" / "step10-unsharded" / "model.pt"
    tracemalloc.start()
    file = read_torch_archive(path)
    norm = file.storage_bytes(file.value["transformer.ln_f.weight"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(norm) == 64 * 4
    assert path.stat().st_size > 900_000 and peak < 400_000


def test_of_a_shared_storage_a_tensor_reads_its_own_stretch(tmp_path: Path) -> None:
    """Flat parameters and views lie in one storage; reading each would else read all of it."""
    whole = torch.arange(1000, dtype=torch.float32)
    torch.save({"a": whole[10:20], "b": whole.reshape(10, 100)[:, 3]}, tmp_path / "views.pt")
    file = read_torch_archive(tmp_path / "views.pt")

    assert np.frombuffer(file.tensor_bytes(file.value["a"]), "<f4").tolist() == whole[10:20].tolist()
    assert len(file.tensor_bytes(file.value["b"])) == 901 * 4
    assert len(file.storage_bytes(file.value["a"])) == 4000


def test_archives_do_not_hold_files_open(tmp_path: Path) -> None:
    """A checkpoint of 1024 ranks has as many of them."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = [read_torch_archive(RANK0) for _ in range(50)]

    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert held[0].value["global_step"] == 10
