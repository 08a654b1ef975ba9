"""`tokens --repair`: a model whose untrained rows are the mean of the trained ones, and what was changed to make it.

Fine-tuning on tokens that training never used (reserved specials, padding of the vocabulary) gives gradients that are
infinite or no numbers, because their rows are zeros or tiny. Of a model as transformers saves it in safetensors, only
the bytes of those rows change; other layouts are written as such a model.

Source: the questions of users in unslothai/unsloth, issues 1053 and 1258 (untrained rows, set to the mean)
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import InvalidRange, NotWritable, RunExists
from data_index.files import atomic_folder, require_free_space, temporary_siblings, write_json
from data_index.token_categories import analyse_tokenizer
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_weights, require_allowed
from forensics.repaired_source import RepairedSource, repaired_source
from forensics.rows_to_reset import RowsToReset, rows_to_reset
from forensics.token_answer import UndertrainedTokens
from forensics.token_source import token_source
from forensics.undertrained_tokens import judged, read_matrices

if TYPE_CHECKING:
    import torch

    from replay.row_reset import RowReset

REPORT = "repair.json"
COLUMNS = ("token_id", "text", "category", "reason", "seems_trained")
_NORMS = ("input_norm_before", "input_norm_after", "output_norm_before", "output_norm_after")
_BIAS = ("bias_before", "bias_after")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repair:
    """What was changed, or would be.

    Attributes:
        folder: where the model was written; None: it was only planned.
        rows: one a token id that is reset, rising: COLUMNS, and norms of its row in each matrix before and after; null
            where that matrix keeps it.
        matrices: one a stored tensor: its name, role, dtype, and how many of its rows are reset.
        changed, copied: names of files; `left_out`: of the source's, which hold rows as they were.
        num_bytes: of all files. num_bytes_changed: of rows, in files that are otherwise copies; None: written anew.
    """

    source: str
    folder: Path | None
    indicator: str
    judged_by: str
    rows: tuple[dict[str, Any], ...]
    matrices: tuple[dict[str, Any], ...]
    kept: dict[str, list[int]]
    num_trained: int
    changed: tuple[str, ...]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]
    num_bytes: int
    num_bytes_changed: int | None
    messages: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> list[str]:
        told = [name for name in (*_NORMS, *_BIAS) if any(row[name] is not None for row in self.rows)]
        return [*COLUMNS, *told]

    def counts(self) -> dict[str, int]:
        """Rows by category; those without a token are `no_token`."""
        return dict(Counter(row["category"] for row in self.rows).most_common())

    def report(self) -> dict[str, Any]:
        """What repair.json says."""
        columns = self.columns
        return {
            "source": self.source,
            "indicator": self.indicator,
            "judged_by": self.judged_by,
            "rows_of_the_mean": self.num_trained,
            "rows_by_category": self.counts(),
            "matrices": list(self.matrices),
            "kept_where_trained": self.kept,
            "files_changed": list(self.changed),
            "files_copied": list(self.copied),
            "files_left_out": list(self.left_out),
            "bytes": self.num_bytes,
            "bytes_changed": self.num_bytes_changed,
            "messages": list(self.messages),
            "rows": [{name: row[name] for name in columns} for row in self.rows],
        }

    def facts(self) -> Iterator[tuple[str, str]]:
        """What a person wants to know of it, as pairs."""
        counts, padding = self.counts(), self.counts().get("no_token", 0)
        groups = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "no_token")
        yield "rows reset", f"{len(self.rows) - padding:,} of tokens ({groups or 'none'}), {padding:,} without a token"
        yield "judged by", self.judged_by
        yield "reset to", f"the mean of {self.num_trained:,} trained rows, each matrix its own"
        for matrix in self.matrices:
            yield f"matrix: {matrix['name']}", f"{matrix['role']}, {matrix['dtype']}; {matrix['num_rows']:,} rows reset"
        for role, ids in self.kept.items():
            if ids:
                yield f"kept in the {role} matrix", f"{len(ids):,} rows, which nothing there tells to be untrained"
        changed = (
            "written anew" if self.num_bytes_changed is None else f"{self.num_bytes_changed:,} bytes changed in it"
        )
        yield "files", f"{', '.join(self.changed)} ({changed}); {len(self.copied):,} more; {self.num_bytes:,} bytes"
        if self.left_out:
            yield "left out", f"{', '.join(self.left_out)}: they hold the rows as they were, or no weights of the model"
        for message in self.messages:
            yield "note", message


def repair(
    model: str,
    out_dir: Path | str | None,
    checkpoint: int | None = None,
    *,
    rows: Sequence[int] | None = None,
    indicator: str | None = None,
    tokenizer: Path | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    plan: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Repair:
    """Write a model with its untrained rows reset; `out_dir` appears whole or not at all, with repair.json in it.

    Args:
        model: as for `tokens`, but with a configuration: a folder, a repository of the hub, a checkpoint of a run.
        out_dir: a folder that is not there yet, or empty; of a plan, it may be None.
        rows: ids to reset, in place of those that are found.
        indicator: judge by this one.
        max_fetch: bytes of weights that may be fetched from servers; default: 1 GiB.
        plan: read what is needed to say what would be changed, and write nothing.
        progress: of writing: bytes, of all.
    Raises:
        InvalidRange, InvalidEdit: no row can be told to be untrained, or named ones are none (`rows_to_reset`).
        UnsupportedRecipe, UnknownLayout: it cannot be written as a model folder.
        RunExists: `out_dir` holds something.
        TooMuchToFetch, DiskFull, NotWritable, and what `tokens` raises
    """
    from probes.embedding_indicators import mean_of_rows
    from replay.row_reset import row_reset

    workspace = workspace or Workspace()
    source = token_source(model, workspace, checkpoint=checkpoint, tokenizer=tokenizer)
    repaired = repaired_source(source, workspace, tokenizer)
    target = None if out_dir is None else _free_folder(Path(out_dir), repaired)
    matrices = read_matrices(source)
    found = judged(source, analyse_tokenizer(source.tokenizer, source.special_ids), matrices, indicator=indicator)
    chosen = rows_to_reset(found, matrices, rows)
    resets = []
    for name, role, matrix in repaired.tensors(source.embeddings, matrices):
        ids = chosen.of["output" if role != "input" and "output" in chosen.of else "input"]
        trained = _torch_ids(chosen.trained)
        mean = mean_of_rows(matrix[:, None] if matrix.ndim == 1 else matrix, trained)
        resets.append(row_reset(name, role, matrix, ids, mean[0] if matrix.ndim == 1 else mean))
    resets.sort(key=lambda reset: ("input", "output", "bias").index(reset.role))
    answer = _answer(found, chosen, repaired, resets)
    if plan:
        return answer
    if target is None:
        raise InvalidRange("--repair writes a model: name the folder with -o DIR")
    require_allowed(bytes_of_weights(repaired.checkpoint), max_fetch, f"the weights of {source.label}")
    return _written(answer, repaired, resets, target, progress)


def _torch_ids(ids: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(ids)


def _free_folder(out: Path, repaired: RepairedSource) -> Path:
    """Where the model goes, links followed.

    Raises:
        RunExists, NotWritable
    """
    target = Path(os.path.realpath(out))
    if target.is_dir():
        if os.path.ismount(target):
            raise NotWritable(f"{out} is a mount point, which cannot be replaced: name a folder below it")
        if any(target.iterdir()):
            raise RunExists(f"{out} holds files: a repaired model is written to a folder that is new or empty")
    elif target.exists():
        raise RunExists(f"{out} is there, and no folder: name one that is new or empty")
    own = repaired.folder
    if own is not None and own in (target, *target.parents):
        raise RunExists(f"{out} lies in {own}, the model that is read: name a folder outside it")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        kind = "may not be written to" if above.is_dir() else "is no folder"
        raise NotWritable(f"{out} cannot be made, because {above} {kind}: name another place with -o DIR")
    return target


def _answer(
    found: UndertrainedTokens, chosen: RowsToReset, repaired: RepairedSource, resets: Sequence[RowReset]
) -> Repair:
    by_id, trained = {row["token_id"]: row for row in found.rows}, set(chosen.seem_trained.tolist())
    rows = [
        {
            "token_id": token,
            "text": found.analysis.written(token),
            "category": by_id[token]["category"],
            "reason": reason,
            "seems_trained": token in trained,
        }
        | dict.fromkeys((*_NORMS, *_BIAS))
        for token, reason in chosen.why.items()
    ]
    places = {row["token_id"]: row for row in rows}
    for reset in resets:
        _put_norms(places, reset)
    messages = list(found.messages)
    if many := len(chosen.seem_trained):
        messages.append(
            f"{many:,} of these rows have no token or were named, and seem to be trained (seems_trained): do they "
            "belong to tokens that this tokenizer does not list?"
        )
    return Repair(
        source=found.label,
        folder=None,
        indicator=found.indicator,
        judged_by=chosen.judged_by,
        rows=tuple(rows),
        matrices=tuple(_of_reset(reset) for reset in resets),
        kept={role: ids.tolist() for role, ids in chosen.kept.items()},
        num_trained=len(chosen.trained),
        changed=repaired.changed(resets),
        copied=repaired.copied(resets),
        left_out=repaired.left_out,
        num_bytes=repaired.num_bytes,
        num_bytes_changed=sum(len(r.ids) * r.value.numel() * r.value.element_size() for r in resets)
        if repaired.in_place
        else None,
        messages=tuple(messages),
    )


def _put_norms(rows: dict[int, dict[str, Any]], reset: RowReset) -> None:
    name = "bias" if reset.role == "bias" else f"{reset.role}_norm"
    before = reset.before.double() if reset.before.ndim == 1 else reset.before.double().norm(dim=1)
    after = float(reset.value.double() if reset.value.ndim == 0 else reset.value.double().norm())
    for token, was in zip(reset.ids.tolist(), before.tolist(), strict=True):
        rows[token] |= {f"{name}_before": was if math.isfinite(was) else None, f"{name}_after": after}


def _of_reset(reset: RowReset) -> dict[str, Any]:
    return {
        "name": reset.name,
        "role": reset.role,
        "dtype": str(reset.value.dtype).removeprefix("torch."),
        "num_rows": len(reset.ids),
    }


def _written(
    answer: Repair,
    repaired: RepairedSource,
    resets: Sequence[RowReset],
    target: Path,
    progress: Callable[[int, int], None],
) -> Repair:
    require_free_space(target.parent, answer.num_bytes + 2**20, "the repaired model", option="-o DIR")
    left, counts = temporary_siblings(target), list[int]()

    def wrote(count: int) -> None:
        counts.append(count)
        progress(sum(counts), answer.num_bytes)

    with atomic_folder(target) as building:
        repaired.write(building, resets, wrote)
        write_json(building / REPORT, answer.report())
    notes = tuple(f"{path} is left from a run that was killed, or belongs to one that still writes" for path in left)
    return replace(answer, folder=target, messages=(*answer.messages, *notes))
