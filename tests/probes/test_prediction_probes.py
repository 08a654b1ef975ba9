"""Loss, bits per byte, n-grams and calibration of a tiny model against plain loops over its fp64 log-probabilities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from probes.ngram_agreement import BigramCounts
from probes.prediction_blocks import one_pass
from probes.prediction_probes import BigramKL, BitsPerByte, CalibrationError, MeanLoss, UnigramKL
from probes.probe import Measurement, PredictionProbe, TokenRows
from tests.probes.tiny_models import VOCABULARY, tiny_model

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, VOCABULARY, (6, 11))
SCORED = RNG.random(IDS.shape) < 0.7
BYTES = RNG.integers(0, 5, IDS.shape)
ROWS = TokenRows(token_ids=IDS, scored=SCORED)
MODEL = tiny_model("llama")
with torch.no_grad():
    # [rows, length - 1, vocabulary]
    LOGS = MODEL(input_ids=torch.from_numpy(IDS)).logits[:, :-1].double().log_softmax(-1).numpy()
PLACES = [(row, place) for row in range(6) for place in range(1, 11) if SCORED[row, place]]
COUNTS = RNG.integers(0, 4, VOCABULARY)
TABLE = RNG.integers(0, 3, (VOCABULARY, VOCABULARY))
TABLE[IDS[0, 3]] = 0
BIGRAMS = BigramCounts.of_pairs(*TABLE.nonzero(), TABLE[TABLE.nonzero()])


def measured(probe: PredictionProbe, model: Any = MODEL) -> dict[str, Measurement]:
    statistic = probe.statistic()
    one_pass(model, probe.rows.token_ids, [statistic], scored=probe.rows.scored, rows_at_once=4)
    return {one.metric: one for one in probe.measure_predictions(statistic)}


def loss_at(places: list[tuple[int, int]]) -> float:
    """By a loop over (row, place of the token)."""
    return float(np.mean([-LOGS[row, place - 1, IDS[row, place]] for row, place in places]))


def test_the_loss_is_the_mean_over_scored_tokens() -> None:
    found = measured(MeanLoss(rows=ROWS))

    assert list(found) == ["loss"] and found["loss"].unit == "nats per token"
    assert found["loss"].value == pytest.approx(loss_at(PLACES), rel=1e-5)
    assert found["loss"].low < found["loss"].value < found["loss"].high
    everything = measured(MeanLoss(rows=TokenRows(token_ids=IDS)))["loss"].value
    assert everything == pytest.approx(loss_at([(row, place) for row in range(6) for place in range(1, 11)]), rel=1e-5)


def test_rows_of_one_cluster_are_drawn_together() -> None:
    """Two clusters have few different draws, one has none: then there is no interval."""
    two = TokenRows(token_ids=IDS, clusters=np.array([0, 0, 0, 1, 1, 1]))
    probes: list[PredictionProbe] = [MeanLoss(rows=two), BitsPerByte(rows=two, utf8_bytes=BYTES)]
    probes += [UnigramKL(rows=two, counts=COUNTS), BigramKL(rows=two, bigram_counts=BIGRAMS)]
    for probe in probes:
        (found,) = measured(probe).values()
        assert found.low < found.value < found.high
        probe.rows.clusters[:] = 7
        (found,) = measured(probe).values()
        assert found.low is None and found.high is None
        probe.rows.clusters[3:] = 8


def test_bits_per_byte_have_only_the_bytes_of_scored_tokens_below() -> None:
    found = measured(BitsPerByte(rows=ROWS, utf8_bytes=BYTES))["bits per byte"]
    num_bytes = sum(int(BYTES[row, place]) for row, place in PLACES)

    assert found.unit == "bits per byte" and found.low < found.value < found.high
    assert found.value == pytest.approx(loss_at(PLACES) * len(PLACES) / math.log(2) / num_bytes, rel=1e-5)
    assert math.isnan(measured(BitsPerByte(rows=ROWS, utf8_bytes=0 * BYTES))["bits per byte"].value)


def test_distances_from_ngrams_are_relative_entropies_by_another_library() -> None:
    """scipy's, place by place; places whose token before was never counted are in no mean of the bigrams."""
    unigram = measured(UnigramKL(rows=ROWS, counts=COUNTS))["KL(unigram || model)"]
    bigram = measured(BigramKL(rows=ROWS, bigram_counts=BIGRAMS))["KL(bigram || model)"]
    of_unigram = [entropy(COUNTS, np.exp(LOGS[row, place - 1])) for row, place in PLACES]
    known = [(row, place) for row, place in PLACES if TABLE[IDS[row, place - 1]].any()]
    of_bigram = [entropy(TABLE[IDS[row, place - 1]], np.exp(LOGS[row, place - 1])) for row, place in known]

    assert len(known) < len(PLACES)
    assert unigram.value == pytest.approx(np.mean(of_unigram), rel=1e-5)
    assert bigram.value == pytest.approx(np.mean(of_bigram), rel=1e-5)
    assert unigram.unit == bigram.unit == "nats per token"


def test_the_interval_of_a_distance_is_over_rows() -> None:
    """About 2 · 1.96 standard errors of the ratio of row sums to row counts, by the delta method."""
    rng = np.random.default_rng(1)
    rows = TokenRows(token_ids=rng.integers(0, VOCABULARY, (120, 6)), scored=rng.random((120, 6)) < 0.6)
    found = measured(UnigramKL(rows=rows, counts=COUNTS))["KL(unigram || model)"]
    with torch.no_grad():
        logs = MODEL(input_ids=torch.from_numpy(rows.token_ids)).logits[:, :-1].double().log_softmax(-1).numpy()
    of_places = np.array([[entropy(COUNTS, np.exp(logs[row, place])) for place in range(5)] for row in range(120)])
    totals, counts = (of_places * rows.scored[:, 1:]).sum(axis=1), rows.scored[:, 1:].sum(axis=1)
    error = np.std(totals - found.value * counts) * math.sqrt(120) / counts.sum()

    assert found.value == pytest.approx(totals.sum() / counts.sum(), rel=1e-5)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_rows_that_are_all_alike_leave_a_distance_without_doubt() -> None:
    """Every value has to be counted in its own row: else these rows would seem to differ."""
    alike = TokenRows(token_ids=np.tile(IDS[1], (8, 1)))
    probes: list[PredictionProbe] = [UnigramKL(rows=alike, counts=COUNTS), BigramKL(rows=alike, bigram_counts=BIGRAMS)]
    for probe in probes:
        (found,) = measured(probe).values()
        assert found.low == pytest.approx(found.value, rel=1e-6) and found.high == pytest.approx(found.value, rel=1e-6)


def test_calibration_is_that_of_a_loop_over_targets() -> None:
    found = measured(CalibrationError(rows=ROWS))
    bins: dict[int, list[tuple[float, bool]]] = {}
    brier = []
    for row, place in PLACES:
        q = np.exp(LOGS[row, place - 1])
        guess, true = int(q.argmax()), int(IDS[row, place])
        bins.setdefault(math.ceil(q[guess] * 15), []).append((float(q[guess]), guess == true))
        brier.append(sum((q[token] - (token == true)) ** 2 for token in range(VOCABULARY)))
    everything = [pair for pairs in bins.values() for pair in pairs]
    gaps = [abs(sum(right for _, right in pairs) - sum(sure for sure, _ in pairs)) for pairs in bins.values()]

    assert {name: one.unit for name, one in found.items()} == {
        "expected calibration error": "share",
        "Brier score": "1",
        "accuracy": "share",
        "mean confidence": "share",
    }
    assert found["expected calibration error"].value == pytest.approx(sum(gaps) / len(PLACES), rel=1e-4)
    assert found["Brier score"].value == pytest.approx(np.mean(brier), rel=1e-4)
    assert found["accuracy"].value == pytest.approx(np.mean([right for _, right in everything]))
    assert found["mean confidence"].value == pytest.approx(np.mean([sure for sure, _ in everything]), rel=1e-4)


def test_a_model_that_has_broken_has_no_figures_and_ends_nothing() -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[0] = math.nan
    probes: list[PredictionProbe] = [MeanLoss(rows=ROWS), BitsPerByte(rows=ROWS, utf8_bytes=BYTES)]
    probes += [UnigramKL(rows=ROWS, counts=COUNTS), BigramKL(rows=ROWS, bigram_counts=BIGRAMS)]

    for probe in (*probes, CalibrationError(rows=ROWS)):
        assert all(math.isnan(one.value) and one.low is None for one in measured(probe, broken).values())
