import math

import numpy as np
import pytest
import torch

from probes.calibration import Calibration, confidence_bins
from probes.prediction_blocks import PredictionBlock


def block_of(probabilities: np.ndarray, targets: np.ndarray) -> PredictionBlock:
    with np.errstate(divide="ignore"):
        logarithms = torch.from_numpy(np.log(probabilities)).float()
    ids = torch.from_numpy(targets)
    return PredictionBlock(
        log_probabilities=logarithms, targets=ids, contexts=ids, places=np.arange(len(targets), dtype=np.int64)
    )


def test_the_error_of_a_few_predictions_is_the_one_by_hand() -> None:
    """Confidences .9, .9, .7, .62 in two bins of five; right, wrong, right, wrong."""
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.62, 0.38]])
    found = Calibration(num_bins=5)
    for part in (slice(0, 1), slice(1, 4)):
        found.add(block_of(probabilities[part], np.array([0, 0, 1, 1])[part]))
    reliability = found.reliability

    assert reliability.num_targets.tolist() == [0, 0, 0, 2, 2]
    assert reliability.mean_confidence[3:] == pytest.approx([0.66, 0.9])
    assert reliability.accuracy[3:].tolist() == [0.5, 0.5]
    assert reliability.overall_accuracy == 0.5
    assert reliability.overall_confidence == pytest.approx((0.9 + 0.9 + 0.7 + 0.62) / 4)
    assert np.isnan(reliability.accuracy[:3]).all()
    assert reliability.expected_calibration_error == pytest.approx(0.5 * 0.16 + 0.5 * 0.4)
    assert reliability.brier_score == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.09 + 2 * 0.62**2) / 4, rel=1e-6)


def test_the_error_is_that_of_a_loop_over_bins() -> None:
    """The definition of Guo et al., bin by bin, on predictions that are far too sure."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(6, 0.3), size=500)
    targets = rng.integers(0, 6, 500)
    found = Calibration()
    found.add(block_of(probabilities, targets))
    confidence, right, expected = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets, 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())

    assert found.reliability.expected_calibration_error == pytest.approx(expected, rel=1e-5)
    assert expected > 0.3


def test_predictions_that_come_true_as_often_as_they_say_are_calibrated() -> None:
    """Targets drawn from the predictions: the error falls with 1/√n, the Brier score is E[1 − Σq²]."""
    rng = np.random.default_rng(1)
    probabilities = np.repeat(rng.dirichlet(np.full(4, 0.5), size=20), 2000, axis=0)
    targets = (rng.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=3)
    found = Calibration()
    found.add(block_of(probabilities, targets))

    assert found.reliability.expected_calibration_error < 0.01
    expected = (1 - (probabilities**2).sum(axis=1)).mean()
    assert found.reliability.brier_score == pytest.approx(expected, abs=0.01)


def test_a_border_belongs_to_the_bin_below_it() -> None:
    assert confidence_bins(np.array([0.0, 1e-9, 0.25, 0.26, 0.5, 1.0]), 4).tolist() == [0, 0, 0, 1, 1, 3]


def test_predictions_that_are_not_finite_leave_no_figure_that_looks_sound() -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan]])
    found = Calibration()
    found.add(block_of(probabilities, np.array([0, 1])))

    assert found.reliability.num_not_finite == 1
    assert math.isnan(found.reliability.expected_calibration_error) and math.isnan(found.reliability.brier_score)
    assert math.isnan(found.reliability.overall_accuracy) and math.isnan(found.reliability.overall_confidence)
    assert math.isnan(Calibration().reliability.expected_calibration_error)
    assert math.isnan(Calibration().reliability.brier_score)
