"""Files of TensorBoard and of W&B, written by those libraries themselves, and damaged."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.logs import read_log, recognise
from data_index.logs.points import Notes, Wanted
from data_index.logs.tensorboard import crc32c, event_files, masked

TENSORBOARD = """
import sys
import zlib
import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder = sys.argv[1]

def write(name, suffix, steps):
    writer = EventFileWriter(name, filename_suffix=suffix)
    for step in steps:
        event = event_pb2.Event(wall_time=0.0, step=step)
        event.summary.value.add(tag="train/loss", simple_value=10.1 / step)
        value = event.summary.value.add(tag="double")
        value.metadata.plugin_data.plugin_name = "scalars"
        value.tensor.dtype = 2
        value.tensor.tensor_content = np.float64(0.1 * step).tobytes()
        value = event.summary.value.add(tag="half")
        value.tensor.dtype = 19
        value.tensor.half_val.append(int(np.float16(1.5).view(np.uint16)))
        value = event.summary.value.add(tag="text")
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.string_val.append(b"hello")
        value = event.summary.value.add(tag="two")
        value.tensor.dtype = 1
        value.tensor.float_val.extend([1, 2])
        writer.add_event(event)
    event = event_pb2.Event(step=3)
    event.summary.value.add(tag="nan", simple_value=float("nan"))
    writer.add_event(event)
    writer.close()

write(folder, ".first", range(1, 6))
write(folder, ".second", range(4, 9))
write(folder + "/eval", "", [8])
"""
WANDB = """
import sys
import zlib
import wandb

settings = wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_stats=True)
run = wandb.init(mode="offline", dir=sys.argv[1], project="p", settings=settings)
for step in range(1, 301):
    more = {"histogram": wandb.Histogram([1, 2, 3]), "text": "x" * 900} if step % 50 == 0 else {}
    odd = {"nan": float("nan"), "inf": float("-inf")}
    run.log({"train/loss": 10.1 / step, "nested": {"a": step}, **odd, **more}, step=step)
run.finish()
"""


def made_by(program: str, folder: Path) -> Path:
    folder.mkdir()
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(folder)}
    command = [sys.executable, "-c", program, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_by(TENSORBOARD, tmp_path_factory.mktemp("logs") / "board")


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_by(WANDB, tmp_path_factory.mktemp("logs") / "wandb")


def points_of(path: Path, notes: Notes | None = None, **wanted: Any) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for part in read_log(path, recognise(path), Wanted(**wanted), notes or Notes()):
        found.setdefault(part.name, []).extend(zip(part.steps.tolist(), part.values.tolist(), strict=True))
    return found


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def test_event_files_of_a_folder_are_one_log_and_give_every_scalar(board: Path) -> None:
    notes = Notes()
    found = points_of(board, notes)
    steps = [*range(1, 6), *range(4, 9)]

    assert found["train/loss"] == [(step, float(np.float32(10.1 / step))) for step in steps]
    assert found["double"] == [(step, 0.1 * step) for step in steps]
    assert found["half"] == [(step, 1.5) for step in steps]
    assert [step for step, _ in found["nan"]] == [3, 3] and all(math.isnan(value) for _, value in found["nan"])
    assert found["eval/train/loss"] == [(8, float(np.float32(10.1 / 8)))]
    assert {name: notes.left_out[name] for name in ("text", "two")} == {"text": 10, "two": 10}


def test_checksums_are_those_of_the_standard() -> None:
    """RFC 3720, B.4; the mask is what a file holds after the length 0 of a record."""
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA
    assert masked(0) == 0xA282EAD8


def test_an_event_file_that_ends_inside_a_record_gives_what_is_whole(board: Path, tmp_path: Path) -> None:
    content = event_files(board)[0].read_bytes()
    whole = points_of(event_files(board)[0])
    for lost in (1, 10, 60):
        notes = Notes()
        path = tmp_path / "events.out.tfevents.1.cut"
        path.write_bytes(content[:-lost])

        found = points_of(path, notes)
        assert "nan" not in found and found["double"] == whole["double"][: 5 if lost < 50 else 4]
        assert "ends inside a record" in notes.messages[0]


def test_a_changed_byte_of_an_event_file_is_an_error(board: Path, tmp_path: Path) -> None:
    content = event_files(board)[0].read_bytes()
    for place in range(60, len(content) - 60, 37):
        path = tmp_path / "events.out.tfevents.1.bad"
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CorruptFile, match="the checksum of a record"):
            points_of(path)


def test_a_record_that_claims_more_than_there_is_was_cut_off(tmp_path: Path) -> None:
    length = struct.pack("<Q", 2**60)
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(length + struct.pack("<I", masked(crc32c(length))) + bytes(100))
    notes = Notes()

    assert points_of(path, notes) == {} and "ends inside a record, at byte 0" in notes.messages[0]


# --- W&B -------------------------------------------------------------------------------------------------------------


def test_a_local_run_of_wandb_gives_every_number_it_logged(offline_run: Path) -> None:
    notes = Notes()
    found = points_of(offline_run, notes)

    assert found["train/loss"] == [(step, 10.1 / step) for step in range(1, 301)]
    assert found["nested/a"] == [(step, float(step)) for step in range(1, 301)]
    assert [step for step, value in found["nan"] if math.isnan(value)] == list(range(1, 301))
    assert {value for _, value in found["inf"]} == {-math.inf} and len(found["inf"]) == 300
    assert set(found) == {"train/loss", "nested/a", "nan", "inf", "_timestamp", "_runtime"}
    assert notes.left_out == {"histogram": 6, "text": 6} and notes.step_field == "_step"


def test_a_run_that_was_killed_gives_what_is_whole(offline_run: Path, tmp_path: Path) -> None:
    """Records span blocks of 32 KiB: the file is larger than three."""
    (original,) = offline_run.rglob("*.wandb")
    content = original.read_bytes()
    whole = points_of(original)["train/loss"]
    assert len(content) > 3 * 32768
    for length in (len(content) // 2, 32768 + 3, 2 * 32768 + 1000):
        notes = Notes()
        path = tmp_path / "run-killed.wandb"
        path.write_bytes(content[:length])
        found = points_of(path, notes)["train/loss"]

        assert 0 < len(found) < 300 and found == whole[: len(found)]
        assert "ends inside a record" in notes.messages[-1]


def test_a_changed_byte_of_a_run_is_an_error(offline_run: Path, tmp_path: Path) -> None:
    (original,) = offline_run.rglob("*.wandb")
    content = original.read_bytes()
    for place in range(7, 32768, 997):
        path = tmp_path / "run-bad.wandb"
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CorruptFile, match="checksum of a record is wrong|piece of a record|crosses a block"):
            points_of(path)


def test_a_folder_with_several_runs_asks_which(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"run-{name}.wandb").write_bytes(b"")
    with pytest.raises(UnsafeFile, match="holds 2 runs of W&B: name those that are meant"):
        points_of(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MissingFile, match="holds no run of W&B"):
        list(read_log(tmp_path / "nothing", "wandb", Wanted(), Notes()))


def test_what_wandb_exports_reads_like_its_run(offline_run: Path, tmp_path: Path) -> None:
    """scan_history gives rows; as JSON lines NaN is written as text."""
    found = points_of(offline_run)
    path = tmp_path / "history.jsonl"
    rows = [{"_step": step, "train/loss": value, "nan": "NaN"} for step, value in found["train/loss"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert points_of(path)["train/loss"] == found["train/loss"]
    assert all(math.isnan(value) for _, value in points_of(path)["nan"])


def framed(contents: list[bytes]) -> bytes:
    """Records in LevelDB's log, as doc/log_format.md of google/leveldb says."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for content in contents:
        rest, first = content, True
        while rest or first:
            left = 32768 - len(out) % 32768
            if left < 7:
                out += bytes(left)
                continue
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
    return bytes(out)


def test_records_are_whole_wherever_a_block_ends_in_them(tmp_path: Path) -> None:
    """Every place at which the next record may begin near a block's end, and a record of several blocks."""
    from data_index.logs.messages import Record

    def history(step: int, padding: int) -> bytes:
        record = Record()
        for name, text in (("_step", str(step)), ("x", str(step / 7)), ("text", json.dumps("y" * padding))):
            record.history.item.add(key=name.encode(), value_json=text.encode())
        return bytes(record.SerializeToString())

    base = len(framed([history(1, 32000)]))
    for missing in range(0, 24):
        padding = 32000 + 32768 - base - missing
        path = tmp_path / "run-a.wandb"
        path.write_bytes(framed([history(1, padding), history(2, 100_000), history(3, 5)]))

        assert points_of(path)["x"] == [(1, 1 / 7), (2, 2 / 7), (3, 3 / 7)]
