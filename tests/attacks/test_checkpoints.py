"""Checkpoint files that are no pickles lie about sizes, lead outside their folder, or are no files: refused."""

import base64
import gzip
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.attacks.no_files import NO_FILES, Change, fifo, hole, link_to
from tests.attacks.opening import Twin, assert_refused, open_twins
from tests.attacks.payloads import archive, doubled, pickled

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARDED = FIXTURES / "olmo-sharded"
CORE = FIXTURES / "olmo-core" / "main" / "ckpt" / "step10"
TERA = 10**13


def twin(name: str, source: str, file: str, change: Change, folder: Path, **fields: Any) -> Twin:
    """A copy of a real checkpoint in which one file was changed, or put there."""
    place = Path(shutil.copytree(SHARDED / source, folder / name))
    (place / file).parent.mkdir(exist_ok=True)
    change(place / file)
    return Twin(name=name, folder=place, kind="checkpoint", **({"says": file} | fields))


# --- what is no file -------------------------------------------------------------------------------------------------

READ_WITHOUT_LOOKING = {  # found by a pattern, or named by another file
    "torch_legacy": "rank1.pt",
    "local": "model/rank1.pt",
    "torch_new": "model_and_optim/__1_0.distcp",
    "olmo_core": "model/rank_1.safetensors",
}


@pytest.mark.parametrize("kind", [*READ_WITHOUT_LOOKING, "unsharded"])
def test_what_was_not_changed_opens(kind: str) -> None:
    """Else nothing that is refused below says anything."""
    (opened,) = open_twins([Twin(name=kind, folder=SHARDED / kind, kind="checkpoint", says="")]).values()

    assert opened.refusals == {"read_weights": "", "read_optimizer": "", "read_trainer_state": ""}
    assert not opened.crashes and not opened.noted


@pytest.mark.parametrize("kind", READ_WITHOUT_LOOKING)
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    """A pipe would wait forever, a device never end, a hole take terabytes of memory."""
    file = READ_WITHOUT_LOOKING[kind]

    assert_refused([twin(name, kind, file, change, tmp_path) for name, change in NO_FILES.items()])


def test_ranks_are_not_counted_up_to_what_a_name_says(tmp_path: Path) -> None:
    change = link_to("rank0.pt")

    assert_refused([twin("a rank", "torch_legacy", f"rank{9 * 10**17}.pt", change, tmp_path, says="rank2.pt is not")])


# --- zip archives ----------------------------------------------------------------------------------------------------


def rezipped(path: Path, compression: int = zipfile.ZIP_STORED, **extra: bytes) -> None:
    """The same archive, packed, with further entries."""
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename: file.read(entry) for entry in file.infolist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {**entries, **extra}.items():
            file.writestr(name, content)


def with_size(field: int, size: int) -> Change:
    """The archive whose directory gives its first storage another size."""

    def change(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        at = raw.find(b"PK\x01\x02")
        while b"/data/" not in raw[at + 46 : at + 80]:
            at = raw.find(b"PK\x01\x02", at + 4)
        struct.pack_into("<I", raw, at + field, size)
        path.write_bytes(bytes(raw))

    return change


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", pickle.dumps({}, 2))


ARCHIVES: dict[str, Change] = {
    "deflated": lambda path: rezipped(path, zipfile.ZIP_DEFLATED),
    "a bomb": lambda path: rezipped(path, zipfile.ZIP_DEFLATED, **{"archive/data/9": bytes(2**26)}),
    "a bomb in bzip2": lambda path: rezipped(path, zipfile.ZIP_BZIP2, **{"archive/data/9": bytes(2**26)}),
    "an entry of gigabytes": with_size(24, 2**32 - 2),
    "a packed size of gigabytes": with_size(20, 2**32 - 2),
    "an entry beyond the end": with_size(42, 2**32 - 2),
    "two pickles": twice,
    "no zip": lambda path: path.write_bytes(gzip.compress(bytes(1000))),
    "a pickle without a zip": lambda path: path.write_bytes(pickle.dumps({"model": 1})),
}


def test_archives_that_boast_are_refused(tmp_path: Path) -> None:
    assert_refused([twin(name, "unsharded", "model.pt", change, tmp_path) for name, change in ARCHIVES.items()])


@pytest.mark.parametrize("name", ["../../canary", "/tmp/canary", "archive/../../canary"])
def test_names_of_entries_lead_nowhere(name: str, tmp_path: Path) -> None:
    """Entries are read by the names that the pickle gives, and nothing is unpacked to disk."""

    def change(path: Path) -> None:
        rezipped(path, **{name: b"x"})

    there = twin("entry", "unsharded", "model.pt", change, tmp_path / "in", opens=True)
    assert_refused([there], tmp_path / "canary")
    assert not Path("/tmp/canary").exists()


# --- distributed checkpoints -----------------------------------------------------------------------------------------


def replaced(old: bytes, new: bytes) -> Change:
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))

    return change


def longer(path: Path) -> None:
    """Sizes of the embedding and its chunk, an item that is as long, and a file that is mostly hole."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"K\x48", b"J" + struct.pack("<i", 2**31 - 1)))


METADATA: dict[str, Change] = {
    "a parent": replaced(b"__0_0.distcp", b"../passwd000"),
    "a path from the root": replaced(b"__0_0.distcp", b"/etc/passwd0"),
    "a path through the folder": replaced(b"__0_0.distcp", b"a/../../bcde"),
    "no text": replaced(b"\x8c\x0c__0_0.distcp", doubled(60)),
    "terabytes": longer,
    "another pickle": lambda path: path.write_bytes(pickled(b"}")),
    "an archive": lambda path: path.write_bytes(archive(pickled(b"}"))),
}


def test_metadata_that_boasts_or_leads_outside_is_refused(tmp_path: Path) -> None:
    file = "model_and_optim/.metadata"
    twins = [twin(name, "torch_new", file, change, tmp_path) for name, change in METADATA.items()]

    assert_refused(twins)


def test_many_small_pieces_are_compared_in_time(tmp_path: Path) -> None:
    """Comparing each with each would take hours: 300 by 300 blocks of one number, of which one is missing."""
    from data_index.dcp import tile

    sizes = {(row, column): (1, 1) for row in range(300) for column in range(300)}
    assert tile((300, 300), sizes)
    del sizes[7, 7]
    assert not tile((300, 300), sizes | {(7, 8): (1, 2)})
    assert not tile((300, 300), sizes)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pieces_tile_exactly_where_counting_says_so(dimensions: int) -> None:
    """Against painting every element: boxes cut at random, some of them moved."""
    import random

    import numpy as np

    from data_index.dcp import tile

    generator = random.Random(dimensions)
    agreed = {True: 0, False: 0}
    for _ in range(300):
        shape = tuple(generator.randint(1, 5) for _ in range(dimensions))
        boxes = [((0,) * dimensions, shape)]
        for _ in range(generator.randint(0, 6)):
            start, size = boxes.pop(generator.randrange(len(boxes)))
            axis = generator.randrange(dimensions)
            at = generator.randint(0, size[axis])
            first = (*size[:axis], at, *size[axis + 1 :])
            second = (*size[:axis], size[axis] - at, *size[axis + 1 :])
            moved = (*start[:axis], start[axis] + at, *start[axis + 1 :])
            boxes += [(start, first), (moved, second)]
        if generator.random() < 0.5:
            start, size = boxes.pop()
            boxes.append((tuple(max(a + generator.randint(-1, 1), 0) for a in start), size))
        painted = np.zeros(shape, dtype=int)
        inside = all(a + n <= w for start, size in boxes for a, n, w in zip(start, size, shape, strict=True))
        for start, size in boxes:
            painted[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] += 1
        sizes = {start: size for start, size in sorted(boxes, key=lambda box: 0 not in box[1])}
        expected = inside and bool((painted == 1).all())
        assert tile(shape, sizes) == expected, (shape, boxes)
        agreed[expected] += 1
    assert min(agreed.values()) > 20


# --- safetensors -----------------------------------------------------------------------------------------------------


def header(described: Any, data: bytes = bytes(8), length: int | None = None) -> Change:
    raw = described if isinstance(described, bytes) else json.dumps(described).encode()

    def change(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)

    return change


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


HEADERS: dict[str, Change] = {
    "a header of exabytes": header(tensor(), length=2**60),
    "a header of 99 MB": header(tensor(), length=99 * 10**6),
    "a header below zero": header(tensor(), length=2**64 - 1),
    "a shape of terabytes": header(tensor(shape=[TERA])),
    "a shape beyond 64 bits": header(tensor(shape=[2**63, 2, 0])),
    "nothing beyond 64 bits": header(tensor(shape=[0, 2**62, 4], data_offsets=[0, 0]), data=b""),
    "a shape below zero": header(tensor(shape=[-2])),
    "offsets of terabytes": header(tensor(data_offsets=[0, TERA])),
    "offsets that fall": header(tensor(data_offsets=[8, 0])),
    "overlap": header({**tensor(), "b": tensor()["a"]}),
    "a gap": header(tensor(data_offsets=[8, 16]), data=bytes(16)),
    "something behind": header(tensor(), data=bytes(9)),
    "one name twice": header(b'{"a":%b,"a":%b}' % ((json.dumps(tensor()["a"]).encode(),) * 2)),
    "another dtype": header(tensor(dtype="F8_E8M0", shape=[8])),
    "no dtype": header(tensor(dtype="O")),
    "lists in lists": header(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "no header": header(b"[]"),
    "metadata of another kind": header({**tensor(), "__metadata__": {"a": [1]}}),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("layout", ["hf", "olmo"])
def test_safetensors_that_boast_are_refused(layout: str, tmp_path: Path) -> None:
    twins = []
    for name, change in HEADERS.items():
        folder = tmp_path / name
        folder.mkdir()
        change(folder / "model.safetensors")
        says, opens = "model.safetensors", name == "one name twice"  # the library takes the last
        twins.append(Twin(name=name, folder=folder, kind="checkpoint", says=says, layout=layout, opens=opens))
    assert_refused(twins)


# --- lists of files --------------------------------------------------------------------------------------------------

OUTSIDE = ["../b.safetensors", "/etc/passwd", "..", "x/../../b", "x\\b", "", "a\0b"]


def index_of(weight_map: Any) -> Change:
    def change(path: Path) -> None:
        path.write_text(json.dumps({"weight_map": weight_map}))

    return change


INDEXES = {f"to {name!r}"[:20]: index_of({"a": name}) for name in OUTSIDE} | {
    "a map in a map": index_of({"a": {"b": "c"}}),
    "lists in lists": lambda path: path.write_text("[" * 100_000),
    "a number": lambda path: path.write_text("9" * 10_000),
    "a pipe": fifo,
    "a hole": hole,
}


def test_indexes_of_models_lead_nowhere(tmp_path: Path) -> None:
    twins = []
    for number, (name, change) in enumerate(INDEXES.items()):
        folder = tmp_path / f"twin {number}"
        folder.mkdir()
        change(folder / "model.safetensors.index.json")
        says = "holds none of" if name == "a pipe" else "model.safetensors.index.json"
        twins.append(Twin(name=name, folder=folder, kind="checkpoint", says=says, layout="hf"))
    assert_refused(twins)


def described(change: Callable[[dict[str, Any]], Any]) -> Change:
    def rewrite(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content["tensors"])
        path.write_text(json.dumps(content))

    return rewrite


def places(tensors: dict[str, Any]) -> dict[str, Any]:
    """Where the pieces of the embedding are."""
    return tensors["transformer.wte.weight"]["shard_spec_per_file"]


def renamed(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: places(tensors).update({name: places(tensors).pop("rank_0.safetensors")})


def offsets(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: places(tensors)["rank_0.safetensors"].update({"flattened_offsets": value})


FLATTENED: dict[str, Change] = {
    **{f"to {name!r}"[:20].replace("/", "_"): described(renamed(name)) for name in OUTSIDE},
    "terabytes": described(lambda tensors: tensors["transformer.wte.weight"].update(shape=[TERA, 16])),
    "a shape beyond 64 bits": described(lambda tensors: tensors["transformer.wte.weight"].update(shape=[0, 2**70])),
    "offsets of terabytes": described(offsets([[0, TERA]])),
    "offsets that fall": described(offsets([[576, 0]])),
    "offsets of text": described(offsets("0")),
    "many offsets of nothing": described(offsets([[0, 0]] * 300_000)),
    "an unknown dtype": described(lambda tensors: tensors["transformer.wte.weight"].update(dtype="object")),
    "a layer of 5000 digits": described(
        lambda tensors: tensors.update(
            {f"transformer.blocks.{'9' * 5000}.ff_out.weight": tensors["transformer.wte.weight"]}
        )
    ),
    "lists in lists": lambda path: path.write_text('{"tensors":' + "[" * 100_000),
}


def test_metadata_of_flattened_tensors_leads_nowhere(tmp_path: Path) -> None:
    twins = [
        twin(name, "olmo_core", "model/metadata.json", change, tmp_path, says="") for name, change in FLATTENED.items()
    ]
    assert_refused(twins)


def test_a_file_of_many_stretches_is_read_once(tmp_path: Path) -> None:
    """Reading it for each of them would take a time that grows with the square."""
    folder = Path(shutil.copytree(SHARDED / "olmo_core", tmp_path / "many"))
    wide = torch.arange(50_000, dtype=torch.float32)
    safetensors.torch.save_file({"transformer.wte.weight": wide}, folder / "model" / "rank_0.safetensors")
    spec = {"rank_0.safetensors": {"flattened_offsets": [[n, n + 1] for n in range(len(wide))]}}
    entry = {"shape": [3_125, 16], "is_sharded": True, "dtype": "F32", "shard_spec_per_file": spec}
    (folder / "model" / "metadata.json").write_text(json.dumps({"tensors": {"transformer.wte.weight": entry}}))

    assert_refused([Twin(name="many", folder=folder, kind="checkpoint", says="", opens=True)])


# --- configs ---------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
CONFIGS: dict[str, str | bytes] = {
    "os.system": "model: !!python/object/apply:os.system ['touch {canary}']",
    "eval": 'model: !!python/object/apply:eval [\'__import__("os").mknod("{canary}")\']',
    "a new object": "model: !!python/object/new:os.system ['touch {canary}']",
    "a module": "model: !!python/module:antigravity",
    "a name": "model: !!python/name:os.system",
    "a tuple's state": "model: !!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec }]}",
    "a billion laughs": LAUGHS,
    "laughs in the model": LAUGHS + "model: *a29",
    "laughs as a number": LAUGHS + "model: {d_model: *a29, n_heads: 1}",
    "itself": "&a model: *a\nb: &b [*b]",
    "merges": "a: &a {x: 1}\nmodel: {<<: [*a, *a]}",
    "lists in lists": "model: " + "[" * 50_000,
    "maps in maps": "model: " + "{a: " * 50_000,
    "a number to the base 60": "model: " + "1:" * 100_000 + "1",
    "a fraction to the base 60": "model: " + "1:" * 100_000 + "1.0",
    "a number of many digits": "model: " + "9" * 100_000,
    "no integer": "model: !!int ''",
    "no float": "model: !!float ''",
    "no date": "model: !!timestamp x",
    "no bool": "model: !!bool x",
    "a set": "model: !!set {a, b}",
    "not a mapping": "- 1",
    "not UTF-8": b"model: \xff\xfe\xfd",
    "infinite": "model: {d_model: .inf, n_heads: 1}",
}


def test_configs_construct_and_unfold_nothing(tmp_path: Path) -> None:
    canary, twins = tmp_path / "canary", []
    for name, content in CONFIGS.items():
        raw = content if isinstance(content, bytes) else content.replace("{canary}", str(canary)).encode()
        twins.append(twin(name, "unsharded", "config.yaml", lambda path, raw=raw: path.write_bytes(raw), tmp_path))
    assert_refused(twins, canary)


def test_names_in_base64_are_names(tmp_path: Path) -> None:
    names = {
        "not base64": "transformer.wte.weight",
        "below a value": base64.b64encode(pickle.dumps(((("a",), "b"), False))).decode(),
        "no pair": base64.b64encode(pickle.dumps([])).decode(),
        "no end": base64.b64encode(io.BytesIO(pickle.dumps((("a",), False))).getvalue()[:-1]).decode(),
    }
    twins = []
    for name, encoded in names.items():
        folder = Path(shutil.copytree(SHARDED / "unsharded", tmp_path / name))
        safetensors.torch.save_file({encoded: torch.zeros(2)}, folder / "model.safetensors")
        twins.append(Twin(name=name, folder=folder, kind="checkpoint", says="model.safetensors"))
    assert_refused(twins)
