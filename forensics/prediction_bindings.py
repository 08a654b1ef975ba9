"""How probes of predictions get their rows from a run (forensics/probe_catalogue.py names them)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from data_index.errors import ForensicsError, InvalidRange
from forensics.bound_probe import BoundProbe, Builder, Series, always
from forensics.probe_data import ProbeData, hash_of


def predicting(make: Callable[[ProbeData, Any, Any], tuple[Any, dict[str, Any]]]) -> Builder:
    """A probe of the predictions of rows.

    Args:
        make: from the data, the rows and the rows for the model: the probe, and settings besides the rows.
    """

    def build(data: ProbeData, source: str | None) -> BoundProbe:
        rows, for_model = data.rows(source)
        probe, settings = make(data, rows, for_model)
        about = {"rows": rows.description, "rows_sha256": rows.sha256[:16]}
        return always(probe, about | settings, rows.token_ids.size)

    return build


def loss(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.prediction_probes import MeanLoss

    return MeanLoss(rows=for_model), {}


def bits_per_byte(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.prediction_probes import BitsPerByte

    num_bytes = data.utf8_bytes(rows.token_ids)
    return BitsPerByte(rows=for_model, utf8_bytes=num_bytes), {"bytes_sha256": hash_of({"bytes": num_bytes})}


def loss_by_tag(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.group_loss_probes import GroupLoss

    masks = rows.masks_by_tag()
    try:
        num_bytes = data.utf8_bytes(rows.token_ids)
    except ForensicsError:  # no tokenizer, or one that does not tell
        num_bytes = None
    settings = {"tags_sha256": hash_of({**masks, " bytes": num_bytes})}
    return GroupLoss(rows=for_model, groups=masks, utf8_bytes=num_bytes), settings


def loss_by_position(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.group_loss_probes import LossByPosition

    return LossByPosition(rows=for_model), {}


def loss_by_frequency(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.group_loss_probes import LossByFrequency

    return LossByFrequency(rows=for_model, counts=data.own_counts.unigrams), _counted(data)


def unigram_kl(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.prediction_probes import UnigramKL

    return UnigramKL(rows=for_model, counts=data.own_counts.unigrams), _counted(data)


def bigram_kl(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.prediction_probes import BigramKL

    return BigramKL(rows=for_model, bigram_counts=data.own_counts.bigrams), _counted(data)


def calibration(data: ProbeData, rows: Any, for_model: Any) -> Any:
    from probes.prediction_probes import CalibrationError

    return CalibrationError(rows=for_model), {}


def _counted(data: ProbeData) -> dict[str, Any]:
    counts = data.own_counts
    of = "all tokens that were read" if counts.complete else "a sample of the tokens that were read"
    return {
        "counted": f"{counts.num_tokens:,} tokens, {of}",
        "counts_sha256": hash_of(
            {"unigrams": counts.unigrams, "next": counts.bigrams.next_ids, "bigrams": counts.bigrams.counts}
        ),
    }


def next_batch(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.row_loss_probes import NextBatchLoss

    data.run.segment_of_step(data.run.last_step)  # what the steps read has to be known, and to be there
    data.around(data.run.last_step)

    def at(step: int) -> Any:
        around = data.around(step)
        return None if around is None else NextBatchLoss(rows=around[0], is_read=around[1])

    settings = {"run": data.identity, "length": data.options.length, "seed": data.options.seed}
    return BoundProbe(at=at, settings=settings)


# --- of rows that were read at a known step --------------------------------------------------------------------------


def memorization(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.row_loss_probes import RowLosses, memorization_by_checkpoint

    cohorts = data.cohorts
    probe = RowLosses(rows=cohorts.for_model())
    scored = cohorts.scored if cohorts.scored is not None else np.ones(cohorts.token_ids.shape, dtype=bool)
    num_tokens = scored[:, 1:].sum(axis=1)

    def joined(series: Series) -> Series:
        if not series:  # no checkpoint could be read, or the sweep ended before the first
            return {}
        steps = sorted(series)
        losses = np.array([[one.value for one in series[step]] for step in steps])
        first = np.searchsorted(np.array(steps), cohorts.first_steps)
        return dict(zip(steps, memorization_by_checkpoint(losses, first, num_tokens=num_tokens), strict=True))

    return replace(always(probe, _of_cohorts(data), cohorts.token_ids.size), joined=joined)


def extractability(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.model_probes import ExtractabilityProbe

    cohorts = data.cohorts
    whole = (
        np.ones(len(cohorts.token_ids), dtype=bool) if cohorts.scored is None else cohorts.scored[:, :64].all(axis=1)
    )
    if cohorts.token_ids.shape[1] < 64 or not whole.any():
        raise InvalidRange(f"rows of {cohorts.token_ids.shape[1]} tokens have no 32 to prompt with and 32 to continue")
    token_ids, first_steps = cohorts.token_ids[whole], cohorts.first_steps[whole]

    def at(step: int) -> Any:
        return ExtractabilityProbe(token_ids=token_ids, is_read=first_steps <= step)

    return BoundProbe(at=at, settings=_of_cohorts(data), tokens=token_ids.shape[0] * 64)


def _of_cohorts(data: ProbeData) -> dict[str, Any]:
    cohorts = data.cohorts
    return {
        "rows": f"{len(cohorts.token_ids)} rows of {cohorts.token_ids.shape[1]} tokens, read at known steps",
        "rows_sha256": hash_of({"ids": cohorts.token_ids, "scored": cohorts.scored, "steps": cohorts.first_steps}),
    }
