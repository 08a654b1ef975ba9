"""What `tokens --track` reads of checkpoints: one embedding matrix of each, and only what was not read before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import CorruptFile, MissingCheckpoint, MissingState
from data_index.files import sha256_of_file
from data_index.run import Checkpoint, Run
from data_index.token_categories import TokenizerAnalysis, analyse_tokenizer
from data_index.workspace import Workspace
from forensics.kept_paths import Choice, KeptPaths, PathPoint, identity_of, key_of, read_choice, write_choice
from forensics.token_source import TokenSource, token_source
from forensics.undertrained_tokens import Matrices, judged, one_thread, read_matrices, with_finite_rows

if TYPE_CHECKING:
    import torch

    from replay.embedding_weights import EmbeddingMatrix, StoredEmbeddings


@dataclass(slots=True, kw_only=True, eq=False)
class Tracking:
    """Checkpoints to go through, opened: headers of the last one have been read, no tensor.

    Attributes:
        tracked: rising by step. indicator, unused: named by the user.
        choice: what the last checkpoint gave when it was asked before; None: it has to be read.
        kept: what was read under that choice.
    """

    home: Path
    tracked: list[Checkpoint]
    source: TokenSource
    analysis: TokenizerAnalysis
    indicator: str | None
    unused: Sequence[int] | None
    choice_key: str
    choice: Choice | None = None
    kept: KeptPaths | None = None

    @property
    def texts(self) -> np.ndarray:
        """Ids of tokens with a text, int64."""
        return np.array([token.token_id for token in self.analysis.tokens if token.piece is not None], dtype=np.int64)

    def choose(self, choice: Choice) -> KeptPaths:
        self.choice, self.kept = choice, KeptPaths(self.home, choice, self.texts)
        return self.kept

    def to_read(self) -> list[tuple[Checkpoint, list[EmbeddingMatrix]]]:
        """Checkpoints that were not gone through, with the matrices that will be read; where it is not known yet which
        one the indicator is of, the larger one. Reads headers."""
        kept = self.kept
        there = self.tracked if kept is None else [c for c in self.tracked if not kept.holds(c)]
        return [(checkpoint, self._matrices(checkpoint)) for checkpoint in there]

    def _matrices(self, checkpoint: Checkpoint) -> list[EmbeddingMatrix]:
        from replay.embedding_weights import embeddings_of_checkpoint

        if self.choice is None and checkpoint is self.tracked[-1]:
            return [*self.source.embeddings.matrices]
        stored = embeddings_of_checkpoint(checkpoint)
        if self.choice is not None:
            return [matrix_of(stored, self.choice)]
        return [max((m for m in (stored.input, stored.output) if m is not None), key=lambda matrix: matrix.num_bytes)]

    def bytes_to_fetch(self) -> int:
        remote = [matrices for c, matrices in self.to_read() if not isinstance(c.location, Path)]
        return sum(matrix.num_bytes for matrices in remote for matrix in matrices)


def tracked_checkpoints(workspace: Workspace, run: Run, steps: Sequence[int] | None = None) -> list[Checkpoint]:
    """Rising by step, one a step.

    Args:
        steps: None: all with weights that are there.
    Raises:
        MissingCheckpoint
    """
    there: dict[int, Checkpoint] = {}
    for checkpoint in workspace.checkpoints(run):  # one listing: there may be hundreds
        if "weights" in checkpoint.states and checkpoint.is_available() is not False:
            best = there.get(checkpoint.step, checkpoint)
            there[checkpoint.step] = max(best, checkpoint, key=lambda one: len(one.states))
    wanted = sorted(there if steps is None else set(steps))
    if not wanted:
        raise MissingCheckpoint(f"{run.name} has no checkpoint with weights (forensics checkpoints {run.name})")
    return [there.get(step) or workspace.checkpoint(run, step) for step in wanted]


def opened(
    workspace: Workspace,
    run: Run,
    steps: Sequence[int] | None,
    *,
    indicator: str | None = None,
    unused: Sequence[int] | None = None,
    tokenizer: Path | None = None,
) -> Tracking:
    """
    Raises:
        MissingCheckpoint, MissingFile, MissingState, CorruptFile, UnsafeFile, UnknownLayout, UnsupportedRecipe
        AccessDenied, Unreachable, Offline
    """
    home, tracked = workspace.home(run.name), tracked_checkpoints(workspace, run, steps)
    source = token_source(run.name, workspace, checkpoint=tracked[-1].step, tokenizer=tokenizer)
    analysis = analyse_tokenizer(source.tokenizer, source.special_ids)
    choice_key = key_of(
        last=identity_of(tracked[-1]),
        tokenizer=sha256_of_file(tokenizer) if tokenizer else run.tokenizer_sha256,
        indicator=indicator,
        unused=None if unused is None else list(unused),
    )
    tracking = Tracking(
        home=home,
        tracked=tracked,
        source=source,
        analysis=analysis,
        indicator=indicator,
        unused=unused,
        choice_key=choice_key,
    )
    if (choice := read_choice(home, choice_key)) is not None:
        tracking.choose(choice)
    return tracking


def read_points(
    tracking: Tracking, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Choice, list[PathPoint], int]:
    """Go through the checkpoints; each is kept as soon as it was read.

    Returns:
        What was held fixed, a point for each checkpoint, and the bytes of tensors that were read now.
    Raises:
        MissingState, MissingFile, CorruptFile, UnsafeFile, UnsupportedRecipe, InvalidRange
        AccessDenied, Unreachable, Offline
    """
    from replay.embedding_weights import embeddings_of_checkpoint

    num_bytes = 0 if tracking.choice is not None else _choose(tracking)
    choice, kept = tracking.choice, tracking.kept
    assert choice is not None and kept is not None
    points = []
    for number, checkpoint in enumerate(tracking.tracked, 1):
        point = kept.read(checkpoint)
        if point is None:
            stored = matrix_of(embeddings_of_checkpoint(checkpoint), choice)
            point = _point(checkpoint, stored.read(), choice, tracking.texts)
            kept.add(checkpoint, point)
            num_bytes += stored.num_bytes
        points.append(point)
        progress(number, len(tracking.tracked))
    kept.put_in_force(tracking.tracked)
    return choice, points, num_bytes


def _choose(tracking: Tracking) -> int:
    """Judge the last checkpoint as `tokens` does, and keep its point; returns the bytes that were read."""
    matrices = read_matrices(tracking.source)
    found = judged(tracking.source, tracking.analysis, matrices, indicator=tracking.indicator, unused=tracking.unused)
    choice = Choice(
        indicator=found.indicator,
        reason=found.reason,
        unused=found.unused.token_ids.astype(np.int64),
        unused_reason=found.unused.reason,
        never_updated=found.unused.never_updated,
        tied=found.tied,
        num_rows=found.shape[0],
        messages=found.messages,
    )
    last = tracking.tracked[-1]
    point = _point(last, _of_choice(matrices, choice), choice, tracking.texts)
    write_choice(tracking.home, tracking.choice_key, choice)
    tracking.choose(choice).add(last, point)
    return matrices.num_bytes


def _point(checkpoint: Checkpoint, matrix: torch.Tensor, choice: Choice, texts: np.ndarray) -> PathPoint:
    import torch

    from probes.untrained_cluster import cluster_of, indicator_of

    if matrix.shape[0] != choice.num_rows:
        raise CorruptFile(
            f"checkpoint {checkpoint.step} of {checkpoint.run} has {matrix.shape[0]:,} rows in its embedding, the last "
            f"one tracked {choice.num_rows:,}: choose checkpoints of one vocabulary with --checkpoints"
        )
    with one_thread():
        finite = with_finite_rows(matrix)[0] if matrix.ndim == 2 else matrix
        values, left_out = indicator_of(choice.indicator, finite, torch.from_numpy(choice.known))
    found = values.cpu().numpy()
    cluster = cluster_of(None if left_out is None else left_out.cpu().numpy(), found[texts])
    return PathPoint(step=checkpoint.step, values=found, cluster=cluster)


def matrix_of(stored: StoredEmbeddings, choice: Choice) -> EmbeddingMatrix:
    """The matrix that the main indicator is of.

    Raises:
        MissingState
    """
    from probes.embedding_indicators import INPUT_NORM, OUTPUT_BIAS

    if choice.indicator == OUTPUT_BIAS:
        if stored.bias is None:
            raise MissingState(f"{stored.place} has no output bias, as the last checkpoint tracked has")
        return stored.bias
    of_input = choice.indicator == INPUT_NORM or choice.tied or stored.output is None
    return stored.input if of_input else stored.output  # type: ignore[return-value]


def _of_choice(matrices: Matrices, choice: Choice) -> torch.Tensor:
    from probes.embedding_indicators import INPUT_NORM, OUTPUT_BIAS

    if choice.indicator == OUTPUT_BIAS:
        assert matrices.bias is not None
        return matrices.bias
    return matrices.input if choice.indicator == INPUT_NORM else matrices.unembedding
