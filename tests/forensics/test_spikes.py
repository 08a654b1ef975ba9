"""What `spikes` says of logs whose spikes are known: published ones, and made-up ones for every edge case."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_index.workspace import Workspace
from forensics.spike_detection import Spikes, spikes
from forensics.spike_events import SpikeEvent
from tests.forensics.test_cli import answer
from tests.forensics.test_import import published

# Iteration, loss and gradient norm of BLOOM-176B as the reference prints them: 31223 to 31249 are not in its log.
BLOOM = """\
31214 2.198845 0.242
31215 2.220424 0.947
31216 2.595213 2.390
31217 2.241558 15.886
31218 2.345279 145.119
31219 5.098124 960.351
31220 3.492029 353.201
31221 3.213059 379.330
31222 2.804948 650.246
31250 2.215699 0.267
31251 2.235667 0.205"""


def written(path: Path, steps: Any, **columns: Any) -> str:
    """A log as CSV, every digit kept."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *columns])
        rows.writerows(zip(steps, *columns.values(), strict=True))
    return str(path)


def curves(num_steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, a loss and a gradient norm that show nothing, to five decimals."""
    random = np.random.default_rng(seed)
    loss = 2.5 + 0.02 * random.standard_normal(num_steps)
    return np.arange(1, num_steps + 1), loss.round(5), (0.3 * np.exp(0.1 * random.standard_normal(num_steps))).round(5)


def found_in(folder: Path, steps: Any, loss: Any, norm: Any = None, **more: Any) -> Spikes:
    columns = {"loss": loss} | ({} if norm is None else {"grad_norm": norm}) | more
    return spikes(written(folder / "log.csv", steps, **columns), workspace=Workspace(folder / "workspace"))


def robust(found: Spikes) -> list[tuple[Any, ...]]:
    return [(row["onset"], row["peak"], row["recovery"], row["kind"]) for row in found.robust_rows]


# --- published logs --------------------------------------------------------------------------------------------------


def bloom_log(folder: Path, seed: int, rows: str = BLOOM) -> str:
    """The published lines after 200 quiet steps: loss 2.20 +- 0.013 (the reference's z), gradient norm 0.24 +- 0.02."""
    random = np.random.default_rng(seed)
    lines = [line.split() for line in rows.splitlines()]
    quiet = [
        (step, f"{2.2 + 0.013 * random.standard_normal():.6f}", f"{0.24 + 0.02 * random.standard_normal():.3f}")
        for step in range(31014, 31214)
    ]
    steps, loss, norm = zip(*quiet, *lines, strict=True)
    return written(folder / "bloom.csv", steps, **{"lm loss": loss, "grad norm": norm})


@pytest.mark.parametrize("seed", range(5))
def test_bloom_s_spike_is_one_fast_event_that_the_gradient_norm_led_by_four_steps(seed: int, tmp_path: Path) -> None:
    found = spikes(bloom_log(tmp_path, seed), workspace=Workspace(tmp_path / "workspace"))
    (event,) = found.events

    assert (event.onset, event.peak, event.lead_steps, event.kind) == (31215, 31219, 4, "fast")
    assert event.series == ("loss", "grad_norm") and event.recovery == 31250 and event.peak_z is not None
    assert event.peak_value == 5.098124 and 150 < event.peak_z < 300 and event.area is not None
    assert 6.3 < event.area < 6.6  # nats x steps that were logged; the 27 that were not are not made up


def test_the_command_line_says_the_same_of_bloom_s_log(tmp_path: Path) -> None:
    rows = answer(Workspace(tmp_path / "workspace"), "spikes", bloom_log(tmp_path, 0))
    ours = [row for row in rows if row["definition"] == "robust"]

    assert [row["definition"] for row in rows] == ["robust", "olmo_core_monitor", "olmo_core_skip"]
    assert {"onset", "peak", "recovery", "kind", "lead_steps", "definition", "parameters"} <= set(rows[0])
    assert (ours[0]["onset"], ours[0]["peak"], ours[0]["lead_steps"], ours[0]["kind"]) == (31215, 31219, 4, "fast")
    assert rows[1]["parameters"]["window"] == 128 and rows[2]["parameters"]["deviation"] == "sample"
    assert rows[1]["kind"] is None


def test_bloom_s_numbers_here_are_the_published_ones() -> None:
    path = published("curves/bloom/bigscience_log_lines.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["file"].endswith("tr11-176B-ml/chronicles.md")]
    lines = [
        (int(row["iteration"]), float(row["lm_loss"]), float(row["grad_norm"]))
        for row in rows
        if row["lm_loss"] and 31214 <= int(row["iteration"]) <= 31251
    ]

    assert lines == [(int(a), float(b), float(c)) for a, b, c in (line.split() for line in BLOOM.splitlines())]


def scaleup(name: str) -> str:
    (path,) = published("curves/modded-nanogpt").glob(f"1B_scaleup_{name}_*.csv")
    return str(path)


def test_runs_with_one_data_order_spike_together_and_others_do_not(workspace: Workspace) -> None:
    """1B runs A and C read the same batches in the same order, B others."""
    same = spikes(scaleup("A"), scaleup("C"), workspace=workspace).coincidence
    other = spikes(scaleup("A"), scaleup("B"), workspace=workspace).coincidence
    assert same is not None and other is not None

    assert same.coincide and same.p_value < 1e-3 and same.num_common > 50 * same.expected
    assert same.num_common > 0.9 * min(same.num_run, same.num_other)
    assert not other.coincide and other.num_common < 6 * max(other.expected, 1)
    assert same.num_shifts > 3_000 and same.best_shift == 0


def test_a_run_that_ends_in_nan_is_one_event_and_the_rest_is_searched(workspace: Workspace) -> None:
    path = published("curves/megatron-golden/mixtral_8x7b_alltoall_tp2pp4ep4_release.csv")
    found = spikes(str(path), workspace=workspace)
    (nan,) = [event for event in found.events if event.kind == "not_finite"]
    peaks = [event.peak for event in found.events if event.is_spike]

    assert (nan.onset, nan.last, nan.recovery) == (23180, 50860, None)
    assert {3685, 3840, 6020, 2245} <= set(peaks) and len(peaks) < 15
    assert any("logged every 5 steps" in message for message in found.messages)
    skip = next(row for row in found.definitions if row["definition"] == "olmo_core_skip")
    assert skip["by_not_finite"] == 5537


def test_two_versions_of_the_library_give_the_same_events(workspace: Workspace) -> None:
    """The same 15B run: no spike in either, and what comes closest to one comes at the same steps."""
    files = [str(published(f"curves/megatron-golden/gpt3_15b_8t_{v}.csv")) for v in ("0.9.0", "0.10.0")]
    one, two = (spikes(file, workspace=workspace) for file in files)
    together = spikes(*files, workspace=workspace).coincidence
    assert together is not None

    assert robust(one) == robust(two) == []
    assert any("no spike" in message for message in one.messages)
    assert together.statistic == "uppermost" and together.num_common >= 90 and together.p_value < 1e-3


# --- edges -----------------------------------------------------------------------------------------------------------


def test_too_little_history_is_no_answer(tmp_path: Path) -> None:
    steps, loss, norm = curves(16)
    loss[15] = 9.0
    found = found_in(tmp_path, steps, loss, norm)

    assert found.rows == () and not any(message.startswith("no spike") for message in found.messages)
    assert sum("too little history: 16 values" in message for message in found.messages) == 2


def test_a_spike_early_in_a_log_is_neither_fast_nor_slow(tmp_path: Path) -> None:
    steps, loss, norm = curves(300)
    loss[[60, 200]] = 3.5

    assert robust(found_in(tmp_path, steps, loss, norm)) == [(61, 61, 69, None), (201, 201, 209, "fast")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_an_event_and_hides_nothing(value: float, tmp_path: Path) -> None:
    steps, loss, norm = curves(600)
    loss[299:302] = norm[300] = value
    norm[310:312] = 4.0
    rows = found_in(tmp_path, steps, loss, norm)

    assert robust(rows) == [(300, None, 303, "not_finite"), (311, 311, 320, "fast")]
    assert rows.robust_rows[0]["series"] == ["loss", "grad_norm"]
    monitor = [row["onset"] for row in rows.rows if row["definition"] == "olmo_core_monitor"]
    assert monitor == ([] if math.isnan(value) else [300])  # then silent for 128 steps: its window holds the value


def test_flagged_steps_up_to_32_apart_are_one_event(tmp_path: Path) -> None:
    steps, loss, norm = curves(600)
    loss[[300, 332, 400, 433]] = 3.0, 3.5, 3.5, 3.0

    assert [row[:2] for row in robust(found_in(tmp_path, steps, loss, norm))] == [(301, 333), (401, 401), (434, 434)]


def test_steps_that_were_not_logged_count_as_time(tmp_path: Path) -> None:
    """Flags 33 steps apart are two events, however few values lie between; a mean does not reach back over a hole."""
    steps, loss, norm = curves(600)
    loss[[300, 333, 400]] = 3.5
    keep = np.ones(600, dtype=bool)
    keep[302:332] = keep[402:440] = False
    found = found_in(tmp_path, steps[keep], loss[keep], norm[keep])

    assert [row[:2] for row in robust(found)] == [(301, 301), (334, 334), (401, 401)]
    assert robust(found)[2][2] == 441


def test_a_log_of_every_tenth_step_says_so(tmp_path: Path) -> None:
    steps, loss, norm = curves(600)
    loss[300] = 3.5
    found = found_in(tmp_path, steps * 10, loss, norm)

    assert robust(found)[0][:2] == (3010, 3010) and found.events[0].area == pytest.approx(10 * 1.0, rel=0.2)
    assert any("loss is logged every 10 steps: a window of 128 logged values spans 1,280" in m for m in found.messages)


def test_without_a_gradient_norm_the_lead_is_not_known(tmp_path: Path) -> None:
    steps, loss, _ = curves(400)
    loss[300:303] = 3.0, 3.5, 3.0
    found = found_in(tmp_path, steps, loss)

    assert [(event.peak, event.lead_steps, event.series) for event in found.events] == [(302, None, ("loss",))]
    assert any("logged no gradient norm" in message for message in found.messages)


def test_a_log_with_a_gradient_norm_alone_is_searched(tmp_path: Path) -> None:
    steps, _, norm = curves(400)
    norm[300] = 5.0
    path = written(tmp_path / "log.csv", steps, grad_norm=norm)
    found = spikes(path, workspace=Workspace(tmp_path / "workspace"))

    assert [(event.peak, event.area, event.kind) for event in found.events] == [(301, None, "fast")]
    assert "log.csv logged no loss: only the gradient norm is searched" in found.messages


def test_where_the_loss_never_stands_out_the_peak_is_the_gradient_norm_s(tmp_path: Path) -> None:
    steps, loss, norm = curves(400)
    norm[300:303] = 1.0, 5.0, 2.0
    (event,) = found_in(tmp_path, steps, loss, norm).events

    assert (event.onset, event.peak, event.lead_steps, event.peak_value) == (301, 302, None, 5.0)


def test_a_gradient_norm_that_creeps_up_or_leads_by_far_makes_a_spike_slow(tmp_path: Path) -> None:
    steps, loss, norm = curves(1500)
    loss[1200:1203] = 4.0
    crept, led = norm.copy(), norm.copy()
    crept[:1200] *= np.exp(np.maximum(np.arange(1200) - 700, 0) / 500)
    led[1140:1200] *= 3
    led[1170:1180] *= 2

    def only_spike(of: np.ndarray) -> SpikeEvent:
        (event,) = [event for event in found_in(tmp_path, steps, loss, of.round(5)).events if event.is_spike]
        return event

    assert only_spike(norm).kind == "fast" and only_spike(crept).kind == "slow"
    event = only_spike(led)
    assert (event.onset, event.peak, event.lead_steps, event.kind) == (1141, 1201, 60, "slow")


def test_a_gradient_norm_that_grows_is_a_finding_of_its_own(tmp_path: Path) -> None:
    steps, loss, norm = curves(4000)
    growing = (norm * np.exp(np.maximum(steps - 2000, 0) / 2000 * 0.7)).round(5)
    quiet, found = found_in(tmp_path, steps, loss, norm), found_in(tmp_path, steps, loss, growing)
    (event,) = found.events

    assert quiet.events == ()
    assert event.kind == "gradient_growth" and 1000 <= event.onset <= 2100 and event.last == 4000
    assert event.peak_value is not None and event.level is not None and event.peak_value / event.level > 1.6


def test_level_shifts_are_named_by_what_changed(tmp_path: Path) -> None:
    """A learning rate that drops, a batch that doubles: the window begins anew, and nothing is a spike."""
    steps, loss, norm = curves(900)
    rate, size = np.full(900, 3e-4), np.full(900, 256)
    rate[400:], size[650:] = 3e-5, 512
    loss[400:] -= 0.3
    norm[400:] *= 2.0
    norm[650:] *= 0.5
    loss[420] += 0.2
    found = found_in(tmp_path, steps, loss.round(5), norm.round(5), lr=rate, **{"global batch size": size})
    shifts = [event for event in found.events if event.kind == "level_shift"]

    assert [(event.onset, event.series) for event in shifts] == [(401, ("loss", "grad_norm")), (651, ("grad_norm",))]
    assert "learning rate 0.0003 to 3e-05 at step 401" in shifts[0].detail
    assert "batch size 256 to 512 at step 651" in shifts[1].detail
    assert shifts[0].lasting_offset == pytest.approx(-0.3, abs=0.03)
    assert [event.peak for event in found.events if event.is_spike] == [421]


def test_data_that_change_are_a_level_shift_of_unknown_cause(tmp_path: Path) -> None:
    steps, loss, norm = curves(600)
    loss[300:] += 0.4
    found = found_in(tmp_path, steps, loss.round(5), norm)

    assert robust(found) == [(301, None, None, "level_shift")]
    assert found.events[0].detail.endswith("cause not known")


@pytest.mark.parametrize("shape", ["jump", "overshoot", "climb"])
def test_a_spike_that_never_recovers_is_a_spike(shape: str, tmp_path: Path) -> None:
    """The loss stays higher for good: with a burst of the gradient norm, after an overshoot, or after a climb."""
    steps, loss, norm = curves(800)
    after = np.arange(500)
    rise = {"jump": np.ones(500), "overshoot": 1 + 3 * np.exp(-after / 5), "climb": np.minimum(after / 40, 1)}
    loss[300:] += rise[shape]
    norm[298:310] *= 20
    loss[600] += 0.5
    found = found_in(tmp_path, steps, loss.round(5), norm.round(5))
    first, second = found.events

    assert (first.onset, first.recovery, first.kind) == (299, None, None) and first.peak is not None
    assert "loss" in first.series and first.lasting_offset == pytest.approx(1.0, abs=0.1)
    assert (second.onset, second.kind) == (601, "fast")


def test_a_spike_that_takes_long_to_recover_is_not_fast(tmp_path: Path) -> None:
    steps, loss, norm = curves(900)
    loss[300:] += 3 * np.exp(-np.arange(600) / 30)
    (event,) = found_in(tmp_path, steps, loss.round(5), norm).events

    assert event.onset == event.peak == 301 and event.kind is None
    assert event.recovery is not None and 400 < event.recovery < 560
    assert event.area == pytest.approx(91.5, rel=0.02) and event.lasting_offset == pytest.approx(0, abs=0.06)


def test_a_lasting_offset_is_told_from_the_trend(tmp_path: Path) -> None:
    steps, loss, norm = curves(800)
    loss += 0.4 - 0.0004 * steps
    quiet = loss.copy()
    loss[400:] += 0.08
    loss[400:410] += 2.0
    quiet[400:410] += 2.0
    offsets = [found_in(tmp_path, steps, of.round(5), norm).events[0].lasting_offset for of in (loss, quiet)]

    # Two medians of 64 values and their slopes: an error of half of the noise, which is 0.02.
    assert offsets[0] == pytest.approx(0.08, abs=0.03) and offsets[1] == pytest.approx(0.0, abs=0.03)


def test_spikes_of_a_steeply_falling_loss_are_found(tmp_path: Path) -> None:
    """The fall widens the window 20 times; what stands out of the trend is flagged, the fall itself never."""
    steps, loss, norm = curves(2000)
    falling = (loss + 9 * (steps / 50 + 1) ** -0.35).round(5)
    spiked = falling.copy()
    spiked[[150, 400]] += 0.5
    found = found_in(tmp_path, steps, spiked, norm)

    assert found_in(tmp_path, steps, falling, norm).events == ()
    assert [event.peak for event in found.events] == [151, 401]
    assert any("moves faster than it scatters" in message for message in found.messages)


def test_losses_below_zero_and_gradient_norms_of_zero_are_allowed(tmp_path: Path) -> None:
    steps, loss, norm = curves(1200)
    norm[::7] = 0.0
    loss[800] = 3.5
    (event,) = found_in(tmp_path, steps, (loss - 2.5).round(5), norm).events

    assert (event.peak, event.kind) == (801, "fast")


def test_a_gradient_norm_after_clipping_is_noticed(tmp_path: Path) -> None:
    steps, loss, norm = curves(400)

    assert any("after clipping" in m for m in found_in(tmp_path, steps, loss, np.minimum(norm, 0.31)).messages)
    assert not any("after clipping" in m for m in found_in(tmp_path, steps, loss, norm).messages)
