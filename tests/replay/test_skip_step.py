from __future__ import annotations

import importlib
import json
import random
import statistics
from pathlib import Path

import pytest
import torch

from data_index.errors import CorruptFile
from replay.skip_step import SkipStepAdamW, SkipWindow

LEARNING_RATE, BETAS, WEIGHT_DECAY = 0.01, (0.9, 0.95), 0.1
# Loss, gradient norm and gradient of five steps; the loss of the fourth stands out.
STEPS = [
    (5.0, 1.0, [0.3, -0.2, 0.05]),
    (4.9, 1.1, [0.1, 0.7, -0.3]),
    (4.85, 0.9, [-0.4, 0.2, 0.11]),
    (9.0, 1.0, [5.0, 5.0, 5.0]),
    (4.8, 1.05, [0.21, -0.6, 0.33]),
]
START = [0.7, -1.3, 0.02]
# What OLMo-core 3.0.0 makes of these steps (K = 6, sigma = 2): weights and moments; those that differ by `foreach` and
# by the bug of the step counter.
FIRST_MOMENT = {
    False: ["0x1.ea89720000000p-7", "0x1.f74bbc0000000p-14", "0x1.6c764a0000000p-6"],
    True: ["0x1.ea89740000000p-7", "0x1.f74c000000000p-14", "0x1.6c764e0000000p-6"],
}
SECOND_MOMENT = {
    False: ["0x1.ce807e0000000p-7", "0x1.6634120000000p-5", "0x1.4dd8960000000p-7"],
    True: ["0x1.ce807c0000000p-7", "0x1.6634120000000p-5", "0x1.4dd8980000000p-7"],
}
WEIGHTS = {
    True: ["0x1.5afc720000000p-1", "-0x1.4bb5f60000000p+0", "0x1.0134440000000p-6"],
    False: ["0x1.58fce40000000p-1", "-0x1.4d124c0000000p+0", "0x1.195db00000000p-6"],
}

FIXTURES = Path(__file__).parents[1] / "fixtures"


def hexadecimal(numbers: list[str]) -> torch.Tensor:
    return torch.tensor([float.fromhex(number) for number in numbers])


def scalars(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def two_groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:]}]


def optimizer_of(parameter: torch.nn.Parameter, **settings: object) -> SkipStepAdamW:
    window = SkipWindow(interval=6, sigma=2)
    common = {"lr": LEARNING_RATE, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "window": window}
    return SkipStepAdamW([parameter], **(common | settings))  # type: ignore[arg-type]


def trained(num_steps: int = 5, **settings: object) -> tuple[torch.nn.Parameter, SkipStepAdamW, list[bool]]:
    parameter = torch.nn.Parameter(torch.tensor(START))
    optimizer = optimizer_of(parameter, **settings)
    skipped = []
    for loss, grad_norm, gradient in STEPS[:num_steps]:
        parameter.grad = torch.tensor(gradient)
        optimizer.window.append(*scalars(loss, grad_norm))
        optimizer.step()
        skipped.append(optimizer.skipped_last_step)
    return parameter, optimizer, skipped


# --- The window --------------------------------------------------------------------------------------------------


def factors_of(losses: list[float], interval: int, sigma: float, norms: list[float] | None = None) -> list[float]:
    window = SkipWindow(interval=interval, sigma=sigma)
    factors = []
    for index, loss in enumerate(losses):
        window.append(torch.tensor(loss), None if norms is None else torch.tensor(norms[index]))
        factors.append(window.step_factor().item())
    return factors


def test_nothing_is_left_out_before_half_the_window_is_full() -> None:
    assert factors_of([1.0, 1.1, 99.0, 1.0], interval=8, sigma=1) == [1.0, 1.0, 1.0, 1.0]
    assert factors_of([1.0, 1.1, 1.0, 99.0], interval=8, sigma=1) == [1.0, 1.0, 1.0, 0.0]


def test_either_number_may_stand_out_and_only_upwards() -> None:
    steady, high, low = [1.0, 1.1, 0.9, 1.0], [1.0, 1.1, 0.9, 9.0], [1.0, 1.1, 0.9, -9.0]

    assert factors_of(steady, 6, 2, high)[-1] == factors_of(high, 6, 2, steady)[-1] == 0.0
    assert factors_of(steady, 6, 2, low)[-1] == factors_of(low, 6, 2, steady)[-1] == 1.0


def test_a_step_is_compared_with_the_steps_before_it_and_skipped_ones_among_them() -> None:
    """The rule done again with Python floats, over a window that has moved on several times."""
    draw = random.Random(3)
    losses = [draw.gauss(3, 0.3) + draw.choice([0] * 9 + [4]) for _ in range(120)]
    interval, sigma = 10, 2

    expected = []
    for index, loss in enumerate(losses):
        before = losses[max(0, index - interval) : index]
        enough = min(index, interval) + 1 >= max(2, interval // 2)
        ordinary = not enough or loss - statistics.mean(before) <= sigma * statistics.stdev(before)
        expected.append(float(ordinary))

    assert factors_of(losses, interval, sigma) == expected
    assert 0.0 in expected


def test_a_loss_that_is_not_a_number_is_left_out() -> None:
    assert factors_of([1.0, 1.1, 0.9, float("nan")], interval=6, sigma=2)[-1] == 0.0


def test_what_the_trainer_logged_makes_the_window_it_held() -> None:
    """Its checkpoints do not hold the window."""
    draw = random.Random(5)
    log = [(draw.gauss(3, 0.3), draw.gauss(1, 0.1)) for _ in range(40)]
    whole = SkipWindow(interval=8, sigma=1)
    for loss, grad_norm in log[:30]:
        whole.append(*scalars(loss, grad_norm))

    seeded = SkipWindow.from_log(*zip(*log[:30], strict=True), interval=8, sigma=1)  # type: ignore[arg-type]

    assert seeded.is_complete
    for loss, grad_norm in log[30:]:
        for window in (whole, seeded):
            window.append(*scalars(loss, grad_norm))
        assert seeded.to_json() == whole.to_json()
        assert torch.equal(seeded.step_factor(), whole.step_factor())


def test_a_window_knows_what_it_lacks_and_when_that_no_longer_matters() -> None:
    window = SkipWindow.from_log([1.0, 1.1], [0.5, 0.6], interval=4)
    lacking = []
    for _ in range(4):
        lacking.append((window.num_missing, window.is_complete))
        window.append(*scalars(1.0, 0.5))

    assert lacking == [(2, False), (2, False), (1, False), (0, True)]


def test_a_trainer_that_was_just_started_remembers_only_its_own_steps() -> None:
    fresh = SkipWindow.from_log([], [], interval=4, num_steps_before=0)
    early = SkipWindow.from_log([9.0, 1.0, 1.1], [9.0, 0.5, 0.6], interval=4, num_steps_before=2)

    assert fresh.is_complete and not fresh.losses
    assert early.is_complete and [loss.item() for loss in early.losses] == [1.0, torch.tensor(1.1).item()]


def test_a_window_survives_being_written_bit_for_bit() -> None:
    window = SkipWindow.from_log([1 / 3, float("inf"), float("nan")], [0.1, 1e-40, 3e38], interval=5, sigma=2.5)

    again = SkipWindow.from_json(json.loads(json.dumps(window.to_json())))

    assert again.to_json() == window.to_json()
    assert all(torch.equal(a, b) for a, b in zip(again.grad_norms, window.grad_norms, strict=True))
    assert (again.interval, again.sigma, again.num_missing) == (5, 2.5, 2)


@pytest.mark.parametrize("broken", [{}, {"losses": ["one"]}, {"losses": [1.0]}, {"interval": "x"}])
def test_a_broken_window_is_refused(broken: dict[str, object]) -> None:
    content = SkipWindow().to_json() | broken if broken else {}

    with pytest.raises(CorruptFile, match="skip rule"):
        SkipWindow.from_json(content)


def test_what_a_window_holds_does_not_change_under_it() -> None:
    loss, grad_norm = scalars(1.0, 2.0)
    window = SkipWindow()
    window.append(loss, grad_norm)
    loss += 1
    grad_norm += 1

    assert (window.losses[0].item(), window.grad_norms[0].item()) == (1.0, 2.0)


def test_decisions_are_those_of_a_real_run() -> None:
    """OLMo-core with K = 16 and sigma = 1; what it logged of itself."""
    lines = (FIXTURES / "olmo-core" / "skipstep" / "metrics.jsonl").read_text().splitlines()
    logged = [line["hex"] for line in map(json.loads, lines) if "optim/step skipped" in line.get("hex", {})]
    window = SkipWindow(interval=16, sigma=1)

    assert logged
    for numbers in logged:
        loss, norm = (float.fromhex(numbers[name]) for name in ("train/CE loss", "optim/total grad norm"))
        window.append(*scalars(loss, norm))
        assert 1 - window.step_factor().item() == float.fromhex(numbers["optim/step skipped"])


# --- The optimizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("bugfix", [False, True])
def test_updates_are_those_of_olmo_core(foreach: bool, bugfix: bool) -> None:
    """Known answers of the trainer's class; one step of the five is left out.

    The moments to the bit. The weights to 2 units in the last place (2.4e-7): a square root is taken on the way,
    and the math libraries of different processors round it differently.
    """
    parameter, optimizer, skipped = trained(foreach=foreach, step_increment_bugfix=bugfix)

    state = optimizer.state[parameter]
    assert skipped == [False, False, False, True, False]
    torch.testing.assert_close(parameter.detach(), hexadecimal(WEIGHTS[bugfix]), rtol=2.4e-7, atol=0)
    assert torch.equal(state["exp_avg"], hexadecimal(FIRST_MOMENT[foreach]))
    assert torch.equal(state["exp_avg_sq"], hexadecimal(SECOND_MOMENT[foreach]))
    assert state["step"].item() == (4.0 if bugfix else 0.0)


@pytest.mark.parametrize("foreach", [False, True])
def test_without_skips_it_is_adamw(foreach: bool) -> None:
    """Up to roundings: the same formula in another order of operations, so 1e-6 relative."""
    parameter, _, skipped = trained(3, foreach=foreach)
    plain = torch.nn.Parameter(torch.tensor(START))
    adamw = torch.optim.AdamW([plain], lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    for _, _, gradient in STEPS[:3]:
        plain.grad = torch.tensor(gradient)
        adamw.step()

    assert not any(skipped)
    torch.testing.assert_close(parameter, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_left_out_changes_nothing(foreach: bool) -> None:
    before, optimizer_before, _ = trained(3, foreach=foreach)
    after, optimizer_after, skipped = trained(4, foreach=foreach)

    assert skipped[-1]
    assert torch.equal(before, after)
    for name, value in optimizer_before.state[before].items():
        assert torch.equal(value, optimizer_after.state[after][name])


@pytest.mark.parametrize("foreach", [False, True])
def test_moments_may_have_a_type_of_their_own(foreach: bool) -> None:
    parameter, optimizer, _ = trained(foreach=foreach, dtype=torch.bfloat16)

    state = optimizer.state[parameter]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["step"].dtype == parameter.dtype == torch.float32


def test_parameters_without_gradient_are_passed_over() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SkipStepAdamW([{"params": [unused]}, {"params": [used, unused.clone().detach()]}])
    used.grad = torch.ones(2)

    optimizer.step()

    assert unused not in optimizer.state and optimizer.state[used]["step"].item() == 1.0
    assert torch.equal(unused.detach(), torch.ones(2))


def test_stopping_and_going_on_equals_never_stopping() -> None:
    """State and window written and read in the middle."""
    whole, _, _ = trained(5)
    parameter, first, _ = trained(3)
    second = optimizer_of(parameter, window=SkipWindow.from_json(json.loads(json.dumps(first.window.to_json()))))
    second.load_state_dict(first.state_dict())

    for loss, grad_norm, gradient in STEPS[3:]:
        parameter.grad = torch.tensor(gradient)
        second.window.append(*scalars(loss, grad_norm))
        second.step()

    assert torch.equal(parameter, whole)


# --- Beside the trainer's own code -------------------------------------------------------------------------------


@pytest.mark.published
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bugfix", [False, True])
def test_bits_equal_those_of_olmo_core_s_class(foreach: bool, dtype: torch.dtype | None, bugfix: bool) -> None:
    adamw = importlib.import_module("olmo_core.optim.adamw")
    generator, draw = torch.Generator().manual_seed(0), random.Random(0)
    ours = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in (1, 5, 64, 1000)]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    common = {"betas": BETAS, "weight_decay": WEIGHT_DECAY, "foreach": foreach, "dtype": dtype}
    common["step_increment_bugfix"] = bugfix
    mine = SkipStepAdamW(two_groups(ours), window=SkipWindow(interval=16, sigma=2), **common)  # type: ignore[arg-type]
    upstream = adamw.SkipStepAdamW(two_groups(theirs), rolling_interval_length=16, sigma_factor=2, **common)

    num_skipped = 0
    for _ in range(100):
        loss, norm = scalars(draw.gauss(3, 0.3) + draw.choice([0] * 9 + [4]), draw.gauss(1, 0.1))
        for parameter, other in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.grad = parameter.grad.clone()
        mine.window.append(loss, norm)
        upstream.latest_loss, upstream.latest_grad_norm = loss, norm
        mine.step()
        upstream.step()
        num_skipped += mine.skipped_last_step
        assert mine.skipped_last_step == bool(upstream.step_skipped)
        for parameter, other in zip(ours, theirs, strict=True):
            assert torch.equal(parameter, other)
            assert all(torch.equal(mine.state[parameter][name], value) for name, value in upstream.state[other].items())
    assert num_skipped
