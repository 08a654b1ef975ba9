"""How each named probe gets its data from a run (forensics/probe_catalogue.py names them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import InvalidRange, MissingFile, UnknownOrder
from data_index.files import sha256_of_file
from data_index.text import decode, encode
from forensics.bound_probe import Series
from forensics.probe_data import ProbeData, hash_of
from forensics.row_files import prompts_of
from forensics.row_sources import OF_RUN

if TYPE_CHECKING:
    from probes.probe import Probe

SHORT_ROWS = 16  # for probes that look at every pair of positions, or at every gradient
SHORT_LENGTH = 512
INDUCTION_ROWS = 64
REPEATED_TOKENS = 50
BATCH_ROWS = 8  # of a step of sampling, at most


# What a BoundProbe has besides its name.
Bound = dict[str, Any]
# (data, what stands after @ in the name)
Builder = Callable[[ProbeData, "str | None"], Bound]


def _always(probe: Probe, settings: Mapping[str, Any], tokens: int | None = None) -> Bound:
    return {"at": lambda step: probe, "settings": dict(settings), "tokens": tokens}


# --- of predictions --------------------------------------------------------------------------------------------------


def predicting(make: Callable[[ProbeData, Any, Any], tuple[Any, dict[str, Any]]]) -> Builder:
    """A probe of the predictions of rows.

    Args:
        make: from the data, the rows and the rows for the model: the probe, and settings besides the rows.
    """

    def build(data: ProbeData, source: str | None) -> Bound:
        rows, for_model = data.rows(source)
        probe, settings = make(data, rows, for_model)
        about = {"rows": rows.description, "rows_sha256": rows.sha256[:16]}
        return _always(probe, about | settings, rows.token_ids.size)

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
    except (OSError, ValueError, NotImplementedError):  # no tokenizer, or one that does not tell
        num_bytes = None
    return GroupLoss(rows=for_model, groups=masks, utf8_bytes=num_bytes), {
        "tags_sha256": hash_of({**masks, " bytes": num_bytes})
    }


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
        "counts_sha256": hash_of({"unigrams": counts.unigrams, "bigrams": counts.bigrams.counts}),
    }


def next_batch(data: ProbeData, source: str | None) -> Bound:
    from probes.row_loss_probes import NextBatchLoss

    data.run.segment_of_step(data.run.last_step)  # what the steps read has to be known, and to be there
    data.around(data.run.last_step)

    def at(step: int) -> Any:
        around = data.around(step)
        return None if around is None else NextBatchLoss(rows=around[0], is_read=around[1])

    settings = {"run": data.identity, "length": data.options.length, "seed": data.options.seed}
    return {"at": at, "settings": settings, "tokens": None}


# --- of rows that were read at a known step --------------------------------------------------------------------------


def memorization(data: ProbeData, source: str | None) -> Bound:
    from probes.row_loss_probes import RowLosses, memorization_by_checkpoint

    cohorts = data.cohorts
    probe = RowLosses(rows=cohorts.for_model())
    scored = cohorts.scored if cohorts.scored is not None else np.ones(cohorts.token_ids.shape, dtype=bool)
    num_tokens = scored[:, 1:].sum(axis=1)

    def joined(series: Series) -> Series:
        steps = sorted(series)
        losses = np.array([[one.value for one in series[step]] for step in steps])
        first = np.searchsorted(np.array(steps), cohorts.first_steps)
        return dict(zip(steps, memorization_by_checkpoint(losses, first, num_tokens=num_tokens), strict=True))

    return _always(probe, _of_cohorts(data), cohorts.token_ids.size) | {"joined": joined}


def extractability(data: ProbeData, source: str | None) -> Bound:
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

    return {"at": at, "settings": _of_cohorts(data), "tokens": token_ids.shape[0] * 64}


def _of_cohorts(data: ProbeData) -> dict[str, Any]:
    cohorts = data.cohorts
    return {
        "rows": f"{len(cohorts.token_ids)} rows of {cohorts.token_ids.shape[1]} tokens, read at known steps",
        "rows_sha256": hash_of({"ids": cohorts.token_ids, "scored": cohorts.scored, "steps": cohorts.first_steps}),
    }


# --- of the model ----------------------------------------------------------------------------------------------------


def _short_rows(data: ProbeData, source: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    rows, _ = data.rows(source)
    whole = np.flatnonzero(rows.scored.all(axis=1)) if rows.scored is not None else np.arange(len(rows.token_ids))
    if not len(whole):
        raise InvalidRange(f"no row of {rows.source} is full of tokens: ask for shorter ones with --length")
    ids = rows.token_ids[whole[:SHORT_ROWS], :SHORT_LENGTH]
    return ids, {"rows": f"{len(ids)} of {rows.description}", "rows_sha256": hash_of({"ids": ids})}


def _repeated(data: ProbeData) -> tuple[np.ndarray, dict[str, Any]]:
    from probes.induction import repeated_rows

    try:
        choices = np.flatnonzero(data.own_counts.unigrams)
    except UnknownOrder:
        choices = np.arange(data.run.vocabulary_size or data.run.largest_token_id + 1)
    if len(choices) < REPEATED_TOKENS:
        raise InvalidRange(f"only {len(choices)} different tokens are known, {REPEATED_TOKENS} are to be repeated")
    ids = repeated_rows(choices, num_repeated=REPEATED_TOKENS, num_rows=INDUCTION_ROWS, seed=data.options.seed)
    about = f"{INDUCTION_ROWS} rows of {REPEATED_TOKENS} random tokens, repeated once"
    return ids, {"rows": about, "rows_sha256": hash_of({"ids": ids})}


def induction(data: ProbeData, source: str | None) -> Bound:
    from probes.model_probes import InductionLoss

    ids, settings = _repeated(data)
    return _always(InductionLoss(token_ids=ids), settings, ids.size)


def induction_heads(data: ProbeData, source: str | None) -> Bound:
    from probes.model_probes import InductionHeads

    ids, settings = _repeated(data)
    return _always(InductionHeads(token_ids=ids), settings, ids.size)


def attention(data: ProbeData, source: str | None) -> Bound:
    from probes.model_probes import AttentionProbe

    ids, settings = _short_rows(data, source)
    return _always(AttentionProbe(token_ids=ids), settings, ids.size)


def _trained_on(data: ProbeData, source: str | None) -> str | None:
    """Gradients are of the data that the run was trained on, where it is known what they are."""
    return source or (OF_RUN if data.run.segments else None)


def gradient_noise(data: ProbeData, source: str | None) -> Bound:
    from probes.gradient_probes import GradientNoiseProbe

    ids, settings = _short_rows(data, _trained_on(data, source))
    if len(ids) < 2:
        raise InvalidRange("the gradient-noise scale needs two rows or more: ask for more with --num-tokens")
    return _always(GradientNoiseProbe(token_ids=ids), settings, 3 * ids.size)


def learning_coefficient(data: ProbeData, source: str | None) -> Bound:
    from probes.gradient_probes import LearningCoefficientProbe
    from probes.learning_coefficient import LangevinSampling

    ids, settings = _short_rows(data, _trained_on(data, source))
    sampling = LangevinSampling(
        step_size=data.options.step_size,
        localization=data.options.localization,
        num_chains=2,
        num_burn_in=20,
        num_draws=40,
        seed=data.options.seed,
    )
    together = max(n for n in range(1, BATCH_ROWS + 1) if len(ids) % n == 0)
    probe = LearningCoefficientProbe(token_ids=ids, sampling=sampling, rows_at_once=together)
    steps = sampling.num_chains * (sampling.num_burn_in + sampling.num_draws)
    tokens = 3 * steps * together * ids.shape[1]
    return _always(probe, settings | asdict(sampling) | {"rows_at_once": together}, tokens)


def generations(data: ProbeData, source: str | None) -> Bound:
    from probes.model_probes import GenerationsProbe

    if source is None:
        raise InvalidRange('generations needs prompts: generations@FILE, a prompt a line (or .jsonl with "prompt")')
    run, path = data.run, Path(source)
    prompts = [np.array(encode(run, prompt), dtype=np.int64) for prompt in prompts_of(path)]
    probe = GenerationsProbe(
        prompts=prompts,
        decode=lambda ids: decode(run, np.asarray(ids)),
        num_tokens=data.options.num_generated,
        end_token_id=run.eos_token_id,
    )
    settings = {"prompts_sha256": sha256_of_file(path), "num_generated": data.options.num_generated}
    return _always(probe, settings, sum(map(len, prompts)) + data.options.num_generated * len(prompts))


# --- of tensors ------------------------------------------------------------------------------------------------------


def norms(data: ProbeData, source: str | None) -> Bound:
    from probes.weight_probes import WeightNorms

    return _always(WeightNorms(), {}, 0)


def embedding_norms(data: ProbeData, source: str | None) -> Bound:
    from probes.weight_probes import EmbeddingNorms

    return _always(EmbeddingNorms(), {}, 0)


def spectra(data: ProbeData, source: str | None) -> Bound:
    from probes.spectrum_probes import MatrixSpectra

    return _always(MatrixSpectra(), {}, 0)


# --- of others -------------------------------------------------------------------------------------------------------


def task(data: ProbeData, task: str) -> Bound:
    from forensics.harness_tasks import HarnessTask

    run = data.run
    if run.tokenizer is None:
        raise MissingFile(f"{run.name} names no tokenizer.json, with which {task} could be put to it")
    probe = HarnessTask(
        task=task,
        tokenizer_file=run.tokenizer,
        eos_token_id=run.eos_token_id,
        pad_token_id=run.pad_token_id,
        num_fewshot=data.options.num_fewshot,
        limit=data.options.limit,
        seed=data.options.seed or None,  # 0: the harness's own seeds, as someone who runs it by hand has
    ).prepared()
    return _always(probe, {"probe": "task"} | probe.settings())


def function(data: ProbeData, name: str, source: str | None) -> Bound:
    from forensics.probing_function import ProbingFunction

    try:
        token_ids = data.rows(source)[0].token_ids
    except (UnknownOrder, MissingFile):
        if source is not None:
            raise
        token_ids = None  # a function of the model alone needs none
    probe = ProbingFunction(name=name, token_ids=token_ids).prepared()
    return _always(probe, {"probe": "function"} | probe.settings(), 0 if token_ids is None else token_ids.size)
