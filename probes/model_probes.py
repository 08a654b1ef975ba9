"""Probes that need the model for themselves: what its heads look at, and what it writes.

Layers and heads are 0-based, as in the names of weights; layers are counted among those with attention. All leave the
model as it was. Probes that take gradients are in probes/gradient_probes.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.attention_heads import head_attention
from probes.generations import greedy_continuations
from probes.induction import induction_loss_changes, induction_scores
from probes.loss import token_losses
from probes.memorization import extractability
from probes.probe import Measurement
from probes.row_bootstrap import Estimate, estimate_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InductionLoss:
    """By how much the second copy of random tokens is easier than the first, with its interval over rows.

    Attributes:
        token_ids: [rows, 2R], as of `probes.induction.repeated_rows`.
    """

    token_ids: np.ndarray

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        changes = induction_loss_changes(model, self.token_ids)
        return [Measurement.of("loss change", _mean(changes), "nats per token")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InductionHeads:
    """How much each head attends to what came after the same token before, and how much the head that does most.

    Attributes:
        token_ids: [rows, 2R], as of `probes.induction.repeated_rows`.
    """

    token_ids: np.ndarray

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        scores = induction_scores(model, self.token_ids)
        largest = Measurement(metric="largest score", value=float(scores.max()), unit="share")
        return [largest, *_of_heads("score", scores, "share")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionProbe:
    """What attention looks at: the mean of all heads, of each layer, and each head.

    Attributes:
        token_ids: integers of shape [rows, length], at least 2 tokens long, without padding.
    """

    token_ids: np.ndarray

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        found = head_attention(model, self.token_ids)
        statistics = (
            ("entropy", found.entropy_nats, "nats"),
            ("entropy share", found.entropy_share, "share"),
            ("sink mass", found.sink_mass, "share"),
            ("mean distance", found.mean_distance_tokens, "tokens"),
        )
        return [
            one
            for name, heads, unit in statistics
            for one in (
                Measurement(metric=name, value=float(heads.mean()), unit=unit),
                *_of_layers(name, heads, unit),
                *_of_heads(name, heads, unit),
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExtractabilityProbe:
    """Does the model go on with the very tokens of rows that it has read, and of rows that it has not?

    "extracted" is the share of rows that it continues without a mistake, with the Wilson interval, as there are often
    none; where rows are in clusters, a bootstrap over these. "matching share" is the mean share of tokens that match.
    Rows of one kind only are measured alone. A model that computes NaN has the value NaN.

    Attributes:
        token_ids: integers of shape [rows, length], with at least as many tokens as prompt and continuation have.
        is_read: bool [rows]: the row was read before the checkpoint.
        end_token_id: never generated, as in the published evaluation; None: it may be.
        clusters: of each row, integers [rows]; None: each row is its own.
    """

    token_ids: np.ndarray
    is_read: np.ndarray
    end_token_id: int | None = None
    num_prompt_tokens: int = 32
    num_continued_tokens: int = 32
    clusters: np.ndarray | None = None

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        shares = self._matching_shares(model)
        sides = {"read": self.is_read, "not read yet": ~self.is_read}
        return [one for name, side in sides.items() if side.any() for one in self._of_side(name, side, shares)]

    def _matching_shares(self, model: Any) -> np.ndarray:
        """Of each row; NaN of a model that is broken."""
        try:
            found = extractability(
                model,
                self.token_ids,
                num_prompt_tokens=self.num_prompt_tokens,
                num_continued_tokens=self.num_continued_tokens,
                end_token_id=self.end_token_id,
            )
        except FloatingPointError:
            return np.full(len(self.token_ids), np.nan)
        return found.matching_shares

    def _of_side(self, name: str, side: np.ndarray, shares: np.ndarray) -> list[Measurement]:
        clusters = None if self.clusters is None else self.clusters[side]
        extracted = np.where(np.isnan(shares), np.nan, shares == 1)[side]
        share = wilson_estimate(extracted) if clusters is None else _mean(extracted, clusters)
        return [
            Measurement.of(f"extracted, {name}", share, "share"),
            Measurement.of(f"matching share, {name}", _mean(shares[side], clusters), "share"),
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationsProbe:
    """What the model writes after each prompt, greedily: "prompt 1" and so on, in the prompts' order.

    The value is the mean log-probability that it gave the tokens it wrote (at most 0), and the text what they say. A
    model that computes NaN has written nothing, and the value is NaN.

    Attributes:
        prompts: integers, one array a prompt, at least one token in each.
        decode: the text of token ids.
        end_token_id: a text ends with it; None: all have `num_tokens` tokens.
    """

    prompts: Sequence[np.ndarray]
    decode: Callable[[list[int]], str]
    num_tokens: int = 64
    end_token_id: int | None = None

    def measure_model(self, model: Any) -> Sequence[Measurement]:
        try:
            written = greedy_continuations(model, self.prompts, self.num_tokens, end_token_id=self.end_token_id)
        except FloatingPointError:
            return [self._measured(number, math.nan, None) for number in range(len(self.prompts))]
        return [
            self._measured(number, _mean_log_probability(model, prompt, ids), self.decode(ids.tolist()))
            for number, (prompt, ids) in enumerate(zip(self.prompts, written, strict=True))
        ]

    def _measured(self, number: int, value: float, text: str | None) -> Measurement:
        return Measurement(metric=f"prompt {number + 1}", value=value, unit="nats per token", text=text)


def wilson_estimate(is_so: np.ndarray) -> Estimate:
    """The share of independent rows of which something is so, with its 95 % Wilson score interval.

    Args:
        is_so: 0 or 1, [rows], at least one; NaN if it is not known.
    Source: Wilson 1927, by scipy
    """
    from scipy.stats import binomtest

    if np.isnan(is_so).any():
        return Estimate(value=math.nan, low=math.nan, high=math.nan, num_clusters=len(is_so))
    num_so = int(is_so.sum())
    found = binomtest(num_so, len(is_so)).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(value=num_so / len(is_so), low=float(found.low), high=float(found.high), num_clusters=len(is_so))


def _mean(values: np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """The mean of one value a row, with its bootstrap interval."""
    return estimate_of(values[:, None], np.ones((len(values), 1)), [1.0], clusters=clusters)


def _mean_log_probability(model: Any, prompt: np.ndarray, written: np.ndarray) -> float:
    """Nats per token, of what was written after a prompt."""
    ids = np.concatenate([np.asarray(prompt, dtype=np.int64), written])[None]
    scored = np.arange(ids.shape[1])[None] >= len(prompt)
    return -float(token_losses(model, ids, scored=scored)[scored[:, 1:]].mean(dtype=np.float64))


def _of_layers(name: str, heads: np.ndarray, unit: str) -> Iterator[Measurement]:
    """The mean of the heads of each layer; heads are [layers, heads]."""
    for layer, mean in enumerate(heads.mean(axis=1)):
        yield Measurement(metric=f"{name}, layer {layer}", value=float(mean), unit=unit)


def _of_heads(name: str, heads: np.ndarray, unit: str) -> Iterator[Measurement]:
    for (layer, head), value in np.ndenumerate(heads):
        yield Measurement(metric=f"{name}, layer {layer} head {head}", value=float(value), unit=unit)
