"""`tokens`: which tokens a model never learned, from its embedding matrices and its tokenizer alone.

Nothing else of the model is read. Every published indicator is computed; which of them is to be trusted is judged by
rows that are known to be unused, and where the cut lies by the gap in its values, with the published 2 % beside it.

Verification by prompting (`token_verification`) alone needs the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import CorruptFile, InvalidRange
from data_index.token_categories import TokenizerAnalysis, analyse_tokenizer
from data_index.workspace import Workspace
from forensics.kept_tokens import keep_tokens
from forensics.token_answer import UndertrainedTokens, token_rows
from forensics.token_source import TokenSource, token_source
from forensics.token_verification import Progress, Verifying, verified
from forensics.unused_set import UnusedSet, find_unused

if TYPE_CHECKING:
    import torch

    from probes.indicator_trust import Gap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrices:
    """What was read. `output`: None where embeddings are tied. `num_bytes`: of tensors, as they are stored."""

    input: torch.Tensor
    output: torch.Tensor | None
    bias: torch.Tensor | None
    second_moments: Mapping[str, torch.Tensor]
    num_bytes: int
    saved_twice: bool = False

    @property
    def unembedding(self) -> torch.Tensor:
        return self.input if self.output is None else self.output


def tokens(
    model: str,
    checkpoint: int | None = None,
    *,
    indicator: str | None = None,
    unused: Sequence[int] | None = None,
    tokenizer: Path | None = None,
    verify: bool | Verifying = False,
    workspace: Workspace | None = None,
    progress: Progress = lambda done, total: None,
) -> UndertrainedTokens:
    """Rank a model's tokens by how little they were trained.

    What is found of a run of the workspace is kept with it, in the view `tokens`, in place of what was for that step.

    Args:
        model: a run or fork (`RUN@STEP` too), a folder or file of a model, or `owner/name[@revision]` of the hub.
        checkpoint: of a run; default: its last.
        indicator: the main one, by name; default: the published one, unless another clearly tells more.
        unused: ids of rows that are known to be unused; default: found.
        tokenizer: a tokenizer.json, where none lies beside the weights.
        verify: prompt the model with the candidates; or how to.
        progress: of prompting.
    Raises:
        UnknownRun, MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnknownLayout
        UnsupportedRecipe, InvalidRange, AccessDenied, Unreachable, Offline
        TooMuchToFetch, OutOfMemory, Busy: when verifying.
    """
    workspace = workspace or Workspace()
    source = token_source(model, workspace, checkpoint=checkpoint, tokenizer=tokenizer)
    found = analysed(source, indicator=indicator, unused=unused)
    if verify:
        how = Verifying() if isinstance(verify, bool) else verify
        found = verified(found, source, workspace, how, progress)
    if source.run is not None and indicator is None and unused is None and tokenizer is None:
        found = replace(found, messages=(*found.messages, *keep_tokens(workspace, found)))
    return found


def analysed(
    source: TokenSource, *, indicator: str | None = None, unused: Sequence[int] | None = None
) -> UndertrainedTokens:
    """The same of a source that is open already; nothing is kept."""
    return judged(
        source,
        analyse_tokenizer(source.tokenizer, source.special_ids),
        read_matrices(source),
        indicator=indicator,
        unused=unused,
    )


def read_matrices(source: TokenSource) -> Matrices:
    """Read the embedding matrices; those that were saved twice although they are one count as tied."""
    import torch

    stored = source.embeddings
    entry = stored.input.read()
    exit = stored.output.read() if stored.output is not None else None
    twice = exit is not None and exit.dtype == entry.dtype and torch.equal(exit, entry)
    if exit is not None and exit.shape[0] != entry.shape[0]:
        raise CorruptFile(f"{stored.place}: the input embedding has {len(entry)} rows, the output layer {len(exit)}")
    return Matrices(
        input=entry,
        output=None if twice else exit,
        bias=stored.bias.read() if stored.bias is not None else None,
        second_moments={role: matrix.read() for role, matrix in stored.second_moments.items()},
        num_bytes=stored.num_bytes,
        saved_twice=twice,
    )


def judged(
    source: TokenSource,
    analysis: TokenizerAnalysis,
    matrices: Matrices,
    *,
    indicator: str | None = None,
    unused: Sequence[int] | None = None,
) -> UndertrainedTokens:
    """The answer, from what was read; rows that are not finite count as rows of zeros."""
    with one_thread():
        finite, notes = _finite(matrices)
        found = _judged(source, analysis, finite, indicator, unused)
    return replace(found, messages=(*found.messages, *notes)) if notes else found


def _finite(matrices: Matrices) -> tuple[Matrices, list[str]]:
    entry, damaged = with_finite_rows(matrices.input)
    notes = [f"{damaged:,} rows of the input matrix are not finite: they count as zeros"] if damaged else []
    matrices = replace(matrices, input=entry)
    if matrices.output is not None:
        exit, damaged = with_finite_rows(matrices.output)
        notes += [f"{damaged:,} rows of the output matrix are not finite: they count as zeros"] if damaged else []
        matrices = replace(matrices, output=exit)
    return matrices, notes


def with_finite_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Rows that are not finite as zeros, and how many they are: one would spoil every mean, and so every distance."""
    from probes.unused_rows import not_finite_rows

    damaged = not_finite_rows(matrix)
    return (matrix.index_fill(0, damaged, 0.0), len(damaged)) if len(damaged) else (matrix, 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Rows are gone through in small parts, for which threads wait longer than they compute (RESULTS.md)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _judged(
    source: TokenSource,
    analysis: TokenizerAnalysis,
    matrices: Matrices,
    indicator: str | None,
    unused: Sequence[int] | None,
) -> UndertrainedTokens:
    import torch

    from probes.embedding_indicators import INPUT_NORM, OUTPUT_COSINE, all_indicators
    from probes.indicator_trust import chosen_indicator, gap_of, published_cut, trust_of

    rows = matrices.input.shape[0]
    if len(analysis.tokens) > rows:
        raise CorruptFile(f"{source.label}: the tokenizer has {len(analysis.tokens):,} ids, the matrix {rows:,} rows")
    known = find_unused(matrices.unembedding, analysis, matrices.second_moments, unused)
    found = all_indicators(
        matrices.input, matrices.output, torch.from_numpy(known.token_ids.astype(np.int64)), matrices.bias
    )
    values = {name: of_rows.cpu().numpy() for name, of_rows in found.values.items()}
    left_out = {name: of_rows.cpu().numpy() for name, of_rows in found.left_out.items()}
    own = np.array([token.token_id for token in analysis.tokens if token.encodes_to_itself], dtype=np.int64)
    if not len(own):
        raise CorruptFile(f"{source.label}: no token of its tokenizer encodes to itself")
    trust = trust_of(values, left_out, np.setdiff1d(own, known.token_ids))
    default = OUTPUT_COSINE if matrices.output is None else INPUT_NORM
    if indicator is None:
        main, reason = chosen_indicator(trust, default)
    elif indicator in values:
        main, reason = indicator, "named by the user"
    else:
        raise InvalidRange(f"there is no indicator {indicator!r} here; there are {', '.join(values)}")
    ids = np.array([token.token_id for token in analysis.tokens if token.piece is not None], dtype=np.int64)
    gap = gap_of(values[main][ids], left_out.get(main))
    ok = [token.token_id for token in analysis.tokens if token.encoding == "OK"]
    cut = published_cut(values[main][ok if ok else own])
    return UndertrainedTokens(
        label=source.label,
        run=source.run,
        step=source.step,
        analysis=analysis,
        unused=known,
        indicator=main,
        reason=reason,
        values=values,
        trust=trust,
        gap=gap,
        published_cut=cut,
        rows=token_rows(analysis, known, main, values, gap, cut, own),
        tied=matrices.output is None,
        shape=(rows, matrices.input.shape[1]),
        num_bytes=matrices.num_bytes,
        messages=tuple(_messages(source, matrices, known, gap)),
    )


def _messages(source: TokenSource, matrices: Matrices, unused: UnusedSet, gap: Gap | None) -> list[str]:
    from probes.indicator_trust import alignment

    found = list(source.messages)
    if matrices.saved_twice:
        found.append("input and output embedding are the same matrix, saved twice: they count as tied")
    if len(unused.token_ids) > 1:
        import torch

        together = alignment(matrices.unembedding, torch.from_numpy(unused.token_ids))
        if together < 0.5:
            found.append(
                f"the directions of the known-unused rows have a mean of norm {together:.2f}: each is still mostly as "
                "it was initialized, so that distances to them tell little"
            )
    if gap is None:
        found.append("the main indicator's values have no gap below the bulk: candidates are by the published 2 % rule")
    return found
