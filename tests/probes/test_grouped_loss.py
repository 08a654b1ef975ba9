import math

import numpy as np
import pytest

from probes.grouped_loss import bits_per_byte_estimate, grouped_loss, mean_loss_estimate, row_losses

LOSSES = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, np.nan]], dtype=np.float32)
SCORED = np.array([[True, True, True, True], [True, True, True, False]])
NUM_BYTES = np.array([[100, 1, 2, 3], [100, 4, 5, 100]], dtype=np.uint8)


def test_a_model_without_knowledge_has_one_bit_per_byte_for_each_bit_of_a_byte() -> None:
    """A closed form: uniform over 256 tokens of one byte each is 8 bits per byte and a perplexity of 256."""
    losses = np.full((3, 7), math.log(256))
    found = grouped_loss(losses, utf8_bytes=np.ones((3, 8), dtype=np.int64))

    assert found.bits_per_byte == pytest.approx([8.0], rel=1e-14)
    assert found.perplexity == pytest.approx([256.0], rel=1e-14)
    assert found.num_tokens.tolist() == found.num_bytes.tolist() == [21]


def test_only_scored_tokens_with_a_loss_are_in_any_denominator() -> None:
    """By hand; neither the bytes of first tokens nor those of a masked one count."""
    found = grouped_loss(LOSSES, scored=SCORED, utf8_bytes=NUM_BYTES)

    assert (found.total_nats.tolist(), found.num_tokens.tolist(), found.num_bytes.tolist()) == ([31.0], [5], [15])
    assert found.bits_per_byte == pytest.approx([31 / 15 / math.log(2)], rel=1e-15)
    assert bits_per_byte_estimate(LOSSES, NUM_BYTES, scored=SCORED).value == pytest.approx(found.bits_per_byte[0])
    assert np.isnan(grouped_loss(LOSSES).nats_per_token[0])  # a loss that is not finite is never left out silently


def test_groups_of_rows_and_of_tokens_are_summed_each_on_their_own() -> None:
    by_row = grouped_loss(LOSSES, groups=np.array([9, 4], dtype=np.uint16), scored=SCORED, utf8_bytes=NUM_BYTES)
    tags = np.array([[7, 1, 2, 1], [7, 2, 1, 3]])
    by_token = grouped_loss(LOSSES, groups=tags, scored=SCORED, utf8_bytes=NUM_BYTES)

    assert by_row.group_ids.tolist() == [4, 9]
    assert by_row.nats_per_token.tolist() == [12.0, 7 / 3]
    assert by_row.num_bytes.tolist() == [9, 6]
    assert by_token.group_ids.tolist() == [1, 2]  # 7 has no losses, 3 is not scored
    assert by_token.total_nats.tolist() == [1 + 4 + 16, 2 + 8]
    assert by_token.num_bytes.tolist() == [1 + 3 + 5, 2 + 4]


def test_a_group_without_a_byte_has_no_bits_per_byte() -> None:
    found = grouped_loss(LOSSES[:1], utf8_bytes=np.zeros((1, 4), dtype=np.int64))

    assert np.isinf(found.bits_per_byte[0])
    with pytest.raises(ValueError, match="none were given"):
        _ = grouped_loss(LOSSES).bits_per_byte


def test_losses_of_a_row_without_bytes_stay_in_the_numerator() -> None:
    num_bytes = NUM_BYTES.copy()
    num_bytes[0] = 0
    of_groups = grouped_loss(LOSSES, scored=SCORED, utf8_bytes=num_bytes).bits_per_byte

    assert bits_per_byte_estimate(LOSSES, num_bytes, scored=SCORED).value == pytest.approx(of_groups[0], rel=1e-15)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2)])
def test_ids_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """[rows, length - 1] would shift every token by one without an error."""
    with pytest.raises(ValueError, match=r"of tokens \(2, 4\)"):
        grouped_loss(LOSSES, groups=np.zeros(shape, dtype=np.int64))


def test_means_of_rows_count_their_scored_tokens() -> None:
    scored = SCORED.copy()
    scored[1] = False
    means, num_tokens = row_losses(LOSSES, scored=SCORED)
    none, num_none = row_losses(LOSSES, scored=scored)

    assert (means.tolist(), num_tokens.tolist()) == ([7 / 3, 12.0], [3, 2])
    assert np.isnan(none[1]) and num_none.tolist() == [3, 0]
    assert mean_loss_estimate(LOSSES, scored=SCORED).value == pytest.approx(31 / 5)
