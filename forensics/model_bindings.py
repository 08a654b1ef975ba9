"""How probes of models and of tensors get their data from a run (forensics/probe_catalogue.py names them)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import InvalidRange, MissingFile, UnknownOrder
from data_index.files import sha256_of_file
from data_index.text import decode, encode
from forensics.bound_probe import BoundProbe, always
from forensics.probe_data import ProbeData, hash_of
from forensics.row_files import prompts_of
from forensics.row_sources import OF_RUN

SHORT_ROWS = 16  # for probes that look at every pair of positions, or at every gradient
SHORT_LENGTH = 512
INDUCTION_ROWS = 64
REPEATED_TOKENS = 50
BATCH_ROWS = 8  # of a step of sampling, at most


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


def induction(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.model_probes import InductionLoss

    ids, settings = _repeated(data)
    return always(InductionLoss(token_ids=ids), settings, ids.size)


def induction_heads(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.model_probes import InductionHeads

    ids, settings = _repeated(data)
    return always(InductionHeads(token_ids=ids), settings, ids.size)


def attention(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.model_probes import AttentionProbe

    ids, settings = _short_rows(data, source)
    return always(AttentionProbe(token_ids=ids), settings, ids.size)


def _trained_on(data: ProbeData, source: str | None) -> str | None:
    """Gradients are of the data that the run was trained on, where it is known what they are."""
    return source or (OF_RUN if data.run.segments else None)


def gradient_noise(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.gradient_probes import GradientNoiseProbe

    ids, settings = _short_rows(data, _trained_on(data, source))
    if len(ids) < 2:
        raise InvalidRange("the gradient-noise scale needs two rows or more: ask for more with --num-tokens")
    return always(GradientNoiseProbe(token_ids=ids), settings, 3 * ids.size)


def learning_coefficient(data: ProbeData, source: str | None) -> BoundProbe:
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
    return always(probe, settings | asdict(sampling) | {"rows_at_once": together}, tokens)


def generations(data: ProbeData, source: str | None) -> BoundProbe:
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
    return always(probe, settings, sum(map(len, prompts)) + data.options.num_generated * len(prompts))


# --- of tensors ------------------------------------------------------------------------------------------------------


def norms(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.weight_probes import WeightNorms

    return always(WeightNorms(), {}, 0)


def embedding_norms(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.weight_probes import EmbeddingNorms

    return always(EmbeddingNorms(), {}, 0)


def spectra(data: ProbeData, source: str | None) -> BoundProbe:
    from probes.spectrum_probes import MatrixSpectra

    return always(MatrixSpectra(), {}, 0)


# --- of others -------------------------------------------------------------------------------------------------------


def task(data: ProbeData, task: str) -> BoundProbe:
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
    return always(probe, {"probe": "task"} | probe.settings())


def function(data: ProbeData, name: str, source: str | None) -> BoundProbe:
    from forensics.probing_function import ProbingFunction

    try:
        token_ids = data.rows(source)[0].token_ids
    except (UnknownOrder, MissingFile):
        if source is not None:
            raise
        token_ids = None  # a function of the model alone needs none
    probe = ProbingFunction(name=name, token_ids=token_ids).prepared()
    return always(probe, {"probe": "function"} | probe.settings(), 0 if token_ids is None else token_ids.size)
