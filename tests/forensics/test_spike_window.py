"""What a loss would have been without a spike, and which step of an event is explained."""

import math

import numpy as np
import pytest

from forensics.spans import standing_out
from forensics.spike_window import onset_and_peak, usual_value


def falling(last: int, seed: int = 0, noise: float = 0.02) -> dict[int, float]:
    """A loss that falls as the logarithm of the step, early and late."""
    random = np.random.default_rng(seed)
    return {step: 6 - 0.4 * math.log(step) + noise * float(random.normal()) for step in range(1, last + 1)}


@pytest.mark.parametrize("onset", [20, 60, 5000])
def test_a_falling_loss_goes_on_falling(onset: int) -> None:
    """Neither a median, which lags behind, nor a line over steps, which runs ahead where the loss still falls fast."""
    usual = usual_value(falling(onset), onset, onset)

    assert usual is not None
    assert usual.value == pytest.approx(6 - 0.4 * math.log(onset), abs=0.03)
    assert usual.scale == pytest.approx(0.02, rel=0.6)


def test_the_spike_and_what_is_after_its_onset_do_not_count() -> None:
    loss = falling(100)
    spiked = loss | {step: 9.0 for step in range(80, 101)}

    assert usual_value(spiked, 80, 85) == usual_value(loss, 80, 85)


def test_outliers_and_values_that_are_no_numbers_do_not_move_it() -> None:
    loss = falling(100)
    disturbed = loss | {72: math.nan, 75: 30.0, 81: 25.0, 90: math.inf}
    one, other = usual_value(loss, 100, 100), usual_value(disturbed, 100, 100)

    assert one is not None and other is not None
    assert other.value == pytest.approx(one.value, abs=0.03) and other.num_values == 32


def test_fewer_than_sixteen_values_tell_nothing() -> None:
    assert usual_value(falling(15), 16, 16) is None
    assert usual_value(falling(16), 17, 17) is not None


def test_a_value_that_is_no_number_stands_out_without_limit() -> None:
    usual = usual_value(falling(50), 51, 51)

    assert usual is not None and usual.z(math.nan) == math.inf == usual.z(math.inf)


def event() -> dict[str, dict[int, float]]:
    """The gradient norm rises from 200 on, the loss is highest at 204, a little up at 202."""
    random = np.random.default_rng(1)
    loss = {step: 3 + 0.01 * float(random.normal()) for step in range(1, 300)}
    norm = {step: 0.5 + 0.02 * float(random.normal()) for step in range(1, 300)}
    for step, value in enumerate((2.0, 5.0, 9.0, 40.0, 90.0, 20.0), 200):
        norm[step] = value
    return {"loss": loss | {202: 3.4, 204: 5.0, 205: 3.6}, "grad_norm": norm}


@pytest.mark.parametrize(("asked", "peak"), [(200, 204), (201, 204), (202, 202), (204, 204), (205, 205)])
def test_of_an_event_the_step_is_explained_whose_own_loss_spikes(asked: int, peak: int) -> None:
    """Whoever asks about the rise of the gradient norm wants to know of the peak that it led to."""
    assert onset_and_peak(event(), asked) == (200, peak)


def test_what_rises_anew_in_the_wake_of_a_peak_is_explained_by_itself() -> None:
    """Flags up to 32 steps apart are one event; whoever asks about the second rise does not mean the first."""
    series = event()
    series["grad_norm"] |= {step: 1.2 for step in range(206, 226)} | {226: 4.0}

    assert onset_and_peak(series, 226) == (226, 226)


def test_outside_of_an_event_the_step_itself_is_explained() -> None:
    assert onset_and_peak(event(), 150) == (150, 150)


def test_of_losses_that_are_no_numbers_the_first_is_explained() -> None:
    series = event()
    series["loss"] |= {step: math.nan for step in range(260, 300)}

    assert onset_and_peak(series, 275) == (260, 260)


def test_the_stretch_that_stands_out_is_found_to_the_token() -> None:
    random = np.random.default_rng(0)
    scores, base = random.normal(4, 0.1, 127), random.normal(4, 1, (8, 127))
    scores[40:60] += 6
    span = standing_out(scores, base)

    assert span is not None and (span.start, span.stop) == (41, 61)  # entry t is about token t + 1


def test_a_row_that_stands_out_as_a_whole_has_no_span() -> None:
    random = np.random.default_rng(0)

    assert standing_out(random.normal(9, 1, 127), random.normal(4, 1, (8, 127))) is None
    assert standing_out(np.full(127, 1.0), np.full((8, 127), 4.0)) is None


def test_tokens_that_are_no_targets_are_in_no_way() -> None:
    random = np.random.default_rng(0)
    scores, base = random.normal(4, 0.1, 127), random.normal(4, 1, (8, 127))
    scores[40:60] += 6
    scores[45:48] = np.nan
    span = standing_out(scores, base)

    assert span is not None and (span.start, span.stop) == (41, 61)
