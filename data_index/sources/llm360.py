"""Runs of LLM360: Amber and K2, whose data are numbered chunks of JSON lines, `{"token_ids": […], "source": …}`.

    amber   train_<chunk>.jsonl; 2,049 ids a line; each chunk is shuffled by the process that trains on it
    k2      numbered chunks; 2,048 ids a line; lines are read as they stand, chunks in a literal order

Any of the chunks may be there; steps that read others are left out. What a published run used is assumed and can be
changed: forensics add … --set instances_per_batch=2240 --set restarts=0,98.

Source: LLM360/amber-train @ 64bc595, LLM360/k2-train @ 869fbb9 (main.py, main_utils.py, scripts/)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, ForensicsError, MissingFile, OrderMismatch, UnknownLayout
from data_index.files import open_existing, parse_json, read_json, require_file
from data_index.kinds import table_of_rows
from data_index.olmo_checkpoint import layout_of, states_of
from data_index.orders.llm360 import K2_CHUNKS, k2_chunk_order
from data_index.run import Checkpoint, Order, OrderTrust, Run, Segment, TokenFile
from data_index.sources import Imported
from data_index.sources.folder import default_name, first_existing

if TYPE_CHECKING:
    from data_index.remote.files import Data

_CHUNK = re.compile(r"(?:.*\D)?0*(\d+)\.jsonl$")
_CHECKPOINT = re.compile(r"ckpt_0*(\d{1,9})$")
MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a published run used."""

    layout: str
    ids_per_line: int
    lines_per_chunk: int | None
    instances_per_batch: int
    world_size: int


FAMILIES = {
    # 224 GPUs of 10 rows; 1,706,976 lines a chunk (amber-train, main.py and run.sh)
    "amber": Family(
        layout="amber", ids_per_line=2049, lines_per_chunk=1_706_976, instances_per_batch=2240, world_size=224
    ),
    # 2,040 rows a step (k2-train, scripts/pretrain_65b.sh); how many lines a chunk has is not stated
    "k2": Family(layout="k2", ids_per_line=2048, lines_per_chunk=None, instances_per_batch=2040, world_size=1),
}


def chunk_files(folder: Path) -> dict[int, Path]:
    """Chunks in the folder, by number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if match := _CHUNK.match(path.name):
            if int(match[1]) in found:
                raise CorruptFile(f"{path} and {found[int(match[1])]} are both chunk {match[1]}")
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def family_of(folder: Path) -> str | None:
    """`amber` or `k2` by the first line of the first chunk; None where it is neither."""
    for path in chunk_files(folder).values():
        try:
            with open_existing(path) as file:
                line = parse_json(file.readline(MAX_LINE_BYTES), path)
        except ForensicsError:
            return None
        if not isinstance(line, dict) or "token_ids" not in line:
            return None
        return "k2" if "subset_name" in line or "src_filename" in line else "amber"
    return None


def line_offsets(path: Path) -> np.ndarray:
    """Byte offsets of the lines of a file and of its end, int64; a last line without a line feed counts.

    Raises:
        CorruptFile: it has an empty line.
    """
    ends = [np.zeros(1, dtype=np.int64)]
    size = require_file(path)
    content = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    for start in range(0, size, 2**26):
        ends.append(np.flatnonzero(content[start : start + 2**26] == 10) + start + 1)
    offsets = np.concatenate(ends)
    if offsets[-1] != size:
        offsets = np.append(offsets, size)
    if (np.diff(offsets) < 2).any():
        raise CorruptFile(f"{path} has an empty line (line {int(np.argmin(np.diff(offsets))) + 1})")
    return offsets


class _Chunks:
    """One of the two layouts; `amber` and `k2` below are its instances and have a layout module's functions."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def recognises(self, folder: Path) -> bool:
        return family_of(folder) == self.family.layout

    def read(self, folder: Path, name: str | None, data: Data, settings: Mapping[str, Any]) -> Imported:
        """
        Args:
            data: where the chunks are; default: the folder.
            settings: instances_per_batch, world_size, lines_per_chunk (of chunks that are not there), restarts (the
                first chunk of each process, such as 0,98).
        Raises:
            MissingFile, CorruptFile, OrderMismatch, UnknownLayout
        """
        folder = folder.absolute()
        unknown = set(settings) - {"instances_per_batch", "world_size", "lines_per_chunk", "restarts"}
        if unknown:
            raise UnknownLayout(f"--set {sorted(unknown)[0]}: layout {self.family.layout} has no such setting")
        if data is not None and not isinstance(data, Path):
            raise MissingFile(f"chunks are read from disk, as lines have to be found: download {data.origin}")
        paths = chunk_files(data or folder)
        if not paths:
            raise MissingFile(f"{data or folder} holds no chunk (*<number>.jsonl)")
        if max(paths) >= K2_CHUNKS:
            raise UnknownLayout(f"{paths[max(paths)]} is no chunk: both families have chunks 0 to {K2_CHUNKS - 1}")
        offsets = {chunk: line_offsets(path) for chunk, path in paths.items()}
        files = _token_files(paths, offsets)
        order, segments = self._order({chunk: len(o) - 1 for chunk, o in offsets.items()}, settings)
        length = _ids_per_line(next(iter(paths.values())))
        restarts_known = self.family.layout == "k2" or "restarts" in settings
        run = Run(
            name=name or default_name(folder),
            layout=self.family.layout,
            source=folder,
            sequence_length=length,
            extra_label=self.family.layout == "amber",
            files=files,
            order=order,
            segments=segments,
            trust=OrderTrust(
                level="derived" if restarts_known else "chunk",
                witness="the trainer's rule and the lines of each chunk",
                missing="a record of the token ids that were consumed"
                if restarts_known
                else "the chunks at which training was restarted, on which the order inside each chunk depends",
            ),
            config_format=self.family.layout,
            config=dict(settings) | _model_of(folder),
            tokenizer=first_existing(folder, data, "tokenizer.json"),
        )
        documents = table_of_rows("documents", list(_documents(files, paths, offsets, length)), folder)
        return Imported(
            run=run,
            tables={"documents": documents},
            lines={file.name: offsets[chunk] for file, chunk in zip(files, paths, strict=True)},
        )

    def _order(self, sizes: Mapping[int, int], settings: Mapping[str, Any]) -> tuple[Order, tuple[Segment, ...]]:
        family = self.family
        batch = int(settings.get("instances_per_batch", family.instances_per_batch))
        lines = settings.get("lines_per_chunk", family.lines_per_chunk)
        chunks = list(sizes)
        if family.layout == "amber":
            ranks = int(settings.get("world_size", min(family.world_size, batch)))
            starts = _numbers(settings.get("restarts", "0"))
            if batch % ranks:
                raise OrderMismatch(f"{batch} rows of a step cannot be shared out to {ranks} ranks alike")
            parameters = {
                "chunks": chunks,
                "chunk_sizes": [sizes[chunk] for chunk in chunks],
                "lines_per_chunk": int(lines or 0),
                "process_starts": starts,
                "world_size": ranks,
                "rows_per_rank": batch // ranks,
            }
            return Order(rule="amber", parameters=parameters), _amber_segments(sizes, int(lines or 0), batch)
        missing = [chunk for chunk in range(K2_CHUNKS) if chunk not in sizes]
        if missing and lines is None:
            raise MissingFile(
                f"chunk {missing[0]} of {K2_CHUNKS} is not there, and where the others stand depends on how many lines "
                "it has: say so with --set lines_per_chunk=…"
            )
        order = [(chunk, sizes.get(chunk, int(lines or 0)), chunk in sizes) for chunk in k2_chunk_order()]
        parameters = {"chunks": chunks, "chunk_sizes": [sizes[chunk] for chunk in chunks]}
        return Order(rule="k2", parameters=parameters), _k2_segments(order, batch)

    def list_checkpoints(self, run: Run) -> list[Checkpoint]:
        """Checkpoints ckpt_<k>, taken after chunk k (Amber), as transformers saves them."""
        found = []
        for path in sorted(run.source.glob("ckpt_*")):
            match = _CHECKPOINT.match(path.name)
            if match is None or layout_of(path) != "hf":
                continue
            step = _step_of_checkpoint(run, int(match[1]))
            if step is not None:
                tokens = run.tokens_after(step)
                found.append(
                    Checkpoint(
                        run=run.name, step=step, tokens=tokens, location=path, layout="hf", states=states_of(path)
                    )
                )
        return found


def _model_of(folder: Path) -> dict[str, Any]:
    """The model's config as the first checkpoint with one states it; empty without any."""
    for path in sorted(folder.glob("ckpt_*/config.json")):
        model = read_json(path)
        if isinstance(model, dict):
            return {"model": model}
    return {}


def _step_of_checkpoint(run: Run, number: int) -> int | None:
    """The last step of a chunk; None for a chunk that is not there (or in K2, whose checkpoints count iterations)."""
    if run.order.rule != "amber":
        return None
    chunks, sizes = run.order.parameters["chunks"], run.order.parameters["chunk_sizes"]
    batch = run.segments[0].instances_per_batch
    filled = [chunk for chunk, size in zip(chunks, sizes, strict=True) if size >= batch]
    return run.segments[filled.index(number)].last_step if number in filled else None


def _numbers(text: Any) -> list[int]:
    parts = text if isinstance(text, list) else str(text).split(",")
    return [int(part) for part in parts]


def _ids_per_line(path: Path) -> int:
    with open_existing(path) as file:
        try:
            return len(parse_json(file.readline(MAX_LINE_BYTES), path)["token_ids"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{path} line 1 is no object with token_ids: {error}") from error


def _token_files(paths: Mapping[int, Path], offsets: Mapping[int, np.ndarray]) -> tuple[TokenFile, ...]:
    files, first = [], 0
    for chunk, path in paths.items():
        lines = len(offsets[chunk]) - 1
        files.append(
            TokenFile(
                name=path.name,
                path=path.absolute(),
                dtype="jsonl",
                num_bytes=path.stat().st_size,
                first_instance=first,
                num_instances=lines,
            )
        )
        first += lines
    return tuple(files)


def _amber_segments(sizes: Mapping[int, int], lines: int, batch: int) -> tuple[Segment, ...]:
    """One segment a chunk that is there; steps count the chunks before it too, each without what fills no batch."""
    segments, steps, position = [], 0, 0
    for chunk in range(max(sizes) + 1):
        batches = sizes.get(chunk, lines) // batch
        if chunk in sizes and batches:
            segments.append(
                Segment(
                    first_step=steps + 1,
                    num_steps=batches,
                    epoch=1,
                    first_position=position,
                    instances_per_batch=batch,
                )
            )
            position += batches * batch
        steps += batches
    if not segments:
        raise OrderMismatch(f"no chunk fills one batch of {batch}")
    return tuple(segments)


def _k2_segments(order: Sequence[tuple[int, int, bool]], batch: int) -> tuple[Segment, ...]:
    """Steps whose rows all lie in chunks that are there.

    Args:
        order: (chunk, lines, is it there) in consumption order.
    """
    segments: list[Segment] = []
    place, present, began = 0, 0, None
    for _, lines, there in [*order, (-1, 0, False)]:
        if there and began is None:
            began = (place, present)
        if not there and began is not None:
            first = -(-began[0] // batch)
            last = place // batch
            if last > first:
                segments.append(
                    Segment(
                        first_step=first + 1,
                        num_steps=last - first,
                        epoch=1,
                        first_position=began[1] + first * batch - began[0],
                        instances_per_batch=batch,
                    )
                )
            began = None
        place += lines
        present += lines if there else 0
    if not segments:
        raise OrderMismatch(f"the chunks that are there do not hold all rows of one step of {batch}")
    return tuple(segments)


def _documents(
    files: Sequence[TokenFile], paths: Mapping[int, Path], offsets: Mapping[int, np.ndarray], length: int
) -> Iterator[dict[str, Any]]:
    """One document a line, with the subset that it came from; only for runs that are small enough to read at once."""
    if sum(file.num_bytes for file in files) > 2**30:
        return
    number = 0
    for file, path in zip(files, paths.values(), strict=True):
        with open_existing(path) as lines:
            for line, content in enumerate(lines):
                try:
                    row = parse_json(content, path)
                    source = row.get("source")
                except (ValueError, AttributeError) as error:
                    raise CorruptFile(f"{path} line {line + 1} is no object: {error}") from error
                subset = row.get("subset_name") or source
                yield {
                    "document_id": number,
                    "file": file.name,
                    "start": line * length,
                    "end": (line + 1) * length,
                    "source": None if source is None else str(source),
                    "source_start": None,
                    "source_end": None,
                    "tags": [str(subset)] if subset else [],
                }
                number += 1


amber, k2 = _Chunks(FAMILIES["amber"]), _Chunks(FAMILIES["k2"])
