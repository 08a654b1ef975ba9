import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from probes.ngram_agreement import BigramAgreement, BigramCounts, UnigramAgreement
from probes.prediction_blocks import one_pass

RNG = np.random.default_rng(0)
TRAINING = RNG.zipf(1.5, (40, 30)) % 20
TABLE = np.zeros((20, 20), dtype=np.int64)
np.add.at(TABLE, (TRAINING[:, :-1], TRAINING[:, 1:]), 1)
TABLE[13] = 0  # never counted as the first of a pair
BIGRAMS = BigramCounts.of_pairs(*TABLE.nonzero(), TABLE[TABLE.nonzero()])
ROWS = RNG.integers(0, 20, (4, 9))


class TableModel(torch.nn.Module):
    """Predicts from the last token alone: a row of a table of logits."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(logits).float())

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_model_that_is_the_ngram_is_at_distance_zero() -> None:
    """Closed forms: KL(p ‖ p) = 0; and for uniform predictions it is log V less the entropy of the n-gram."""
    counts = TRAINING[TRAINING < 20].ravel()
    unigram_counts = np.bincount(counts, minlength=20)
    with np.errstate(divide="ignore"):
        of_bigram = TableModel(np.where(TABLE.sum(axis=1, keepdims=True) > 0, np.log(TABLE), 0))
        of_unigram = TableModel(np.broadcast_to(np.log(unigram_counts), (20, 20)).copy())
    uniform = TableModel(np.full((20, 20), 3.0))
    found = {}
    for name, model in {"bigram": of_bigram, "unigram": of_unigram, "uniform": uniform}.items():
        gathered = UnigramAgreement(unigram_counts), BigramAgreement(BIGRAMS)
        one_pass(model, ROWS, gathered)
        found[name] = [one.agreement for one in gathered]

    assert found["unigram"][0].mean_kl == pytest.approx(0, abs=1e-6)  # fp32 log-probabilities
    assert found["bigram"][1].mean_kl == pytest.approx(0, abs=1e-6)
    assert found["uniform"][0].mean_kl == pytest.approx(math.log(20) - entropy(unigram_counts), abs=1e-6)
    contexts = [context for context in ROWS[:, :-1].flat if context != 13]
    expected = np.mean([math.log(20) - entropy(TABLE[context]) for context in contexts])
    assert found["uniform"][1].mean_kl == pytest.approx(expected, abs=1e-6)
    assert math.isinf(found["bigram"][0].mean_kl)  # what the bigram model excludes, the unigram holds possible
    num_left_out = int((ROWS[:, :-1] == 13).sum())
    assert num_left_out and found["uniform"][1].num_left_out == num_left_out
    assert found["uniform"][1].num_places == ROWS[:, 1:].size - num_left_out


def test_it_is_the_relative_entropy_of_another_library_averaged_over_places() -> None:
    """scipy's relative entropy of dense distributions, place by place."""
    logits = RNG.standard_normal((20, 20))
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    unigram_counts = np.bincount(TRAINING.ravel(), minlength=20)
    gathered = UnigramAgreement(unigram_counts), BigramAgreement(BIGRAMS)
    one_pass(TableModel(logits), ROWS, gathered)

    contexts = ROWS[:, :-1].ravel()
    (every, of_unigram), (known, of_bigram) = (one.by_place for one in gathered)
    assert every.tolist() == list(range(32)) and known.tolist() == np.flatnonzero(contexts != 13).tolist()
    np.testing.assert_allclose(of_unigram, [entropy(unigram_counts, q[c]) for c in contexts], rtol=1e-5)
    np.testing.assert_allclose(of_bigram, [entropy(TABLE[c], q[c]) for c in contexts[known]], rtol=1e-5)
    assert gathered[0].agreement.mean_kl == pytest.approx(np.mean([entropy(unigram_counts, q[c]) for c in contexts]))
    expected = np.mean([entropy(TABLE[c], q[c]) for c in contexts if c != 13])
    assert gathered[1].agreement.mean_kl == pytest.approx(expected, rel=1e-6)


def test_pairs_are_counted_in_any_order_and_as_often_as_they_come() -> None:
    """Counting rows gives the dense table; so do its entries in parts, shuffled; pairs with a count of 0 are none."""
    rows = TRAINING.astype(np.uint16)
    counted = BigramCounts.of_pairs(rows[:, :-1], rows[:, 1:])
    table = np.zeros((20, 20), dtype=np.int64)
    np.add.at(table, (TRAINING[:, :-1], TRAINING[:, 1:]), 1)
    first, second = np.divmod(RNG.permutation(400), 20)
    parts = table[first, second] // 2, table[first, second] - table[first, second] // 2
    joined = BigramCounts.of_pairs(np.tile(first, 2), np.tile(second, 2), np.concatenate(parts))

    for found in (counted, joined):
        dense = np.zeros((20, 20), dtype=np.int64)
        for token in range(20):
            pairs = slice(found.starts[token], found.starts[token + 1])
            dense[token, found.next_ids[pairs]] = found.counts[pairs]
            assert (np.diff(found.next_ids[pairs]) > 0).all() and (found.counts[pairs] > 0).all()
        assert dense.tolist() == table.tolist()


def test_contexts_beyond_all_counted_ones_are_left_out_and_nothing_is_made_up() -> None:
    few = BigramCounts.of_pairs(np.array([2]), np.array([5]))
    model = TableModel(np.zeros((20, 20)))
    bigram, none = BigramAgreement(few), BigramAgreement(BigramCounts.of_pairs(np.array([], int), np.array([], int)))
    one_pass(model, np.array([[2, 19, 0, 1]]), [bigram, none])

    assert (bigram.agreement.num_places, bigram.agreement.num_left_out) == (1, 2)
    assert bigram.agreement.mean_kl == pytest.approx(math.log(20))
    assert math.isnan(none.agreement.mean_kl) and none.agreement.num_left_out == 3
    with pytest.raises(ValueError, match="all 0"):
        UnigramAgreement(np.zeros(20, dtype=np.int64))


def test_a_padded_vocabulary_is_no_obstacle_and_a_shorter_one_is_refused() -> None:
    """Models are padded to multiples of 64 and more; on a GPU, an id outside would end the process."""
    model = TableModel(np.zeros((20, 20)))
    short = UnigramAgreement(np.array([1, 1]))
    one_pass(model, ROWS, [short])

    assert short.agreement.mean_kl == pytest.approx(math.log(20) - math.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="token 20 was counted"):
        one_pass(model, ROWS, [UnigramAgreement(np.ones(21, dtype=np.int64))])
    with pytest.raises(ValueError, match="token 20 was counted"):
        one_pass(model, ROWS, [BigramAgreement(BigramCounts.of_pairs(np.array([0]), np.array([20])))])
