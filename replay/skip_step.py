"""AdamW that leaves out a step whose loss or gradient norm stands out, as OLMo-core's SkipStepAdamW.

`SkipWindow` remembers recent losses and gradient norms and judges the newest; `SkipStepAdamW` multiplies every change
of a step by that judgement, 1 or 0, so that the device never has to wait for the host. The window is in no checkpoint
of the trainer: after a restart it starts empty, and a replay must fill it from the log.

The arithmetic follows the trainer's to the operation.
Source: Python package ai2-olmo-core 3.0.0, optim/skip_step_optimizer.py and optim/adamw.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from data_index.errors import CorruptFile


@dataclass(slots=True, kw_only=True, eq=False)
class SkipWindow:
    """Losses and gradient norms of the last steps, the newest last; skipped steps stay among them.

    Attributes:
        interval: how many steps before the newest it is compared with (K).
        sigma: how many standard deviations above their mean are too much.
        losses, grad_norms: 0-d fp32 tensors on the device of the model, at most K + 1 each. `grad_norms` stays empty
            in a run that does not clip: the trainer then judges by the loss alone.
        num_missing: steps that the trainer remembered at this point and this window does not.
    """

    interval: int = 128
    sigma: float = 6.0
    losses: list[torch.Tensor] = field(default_factory=list)
    grad_norms: list[torch.Tensor] = field(default_factory=list)
    num_missing: int = 0

    @classmethod
    def from_log(
        cls,
        losses: Sequence[float],
        grad_norms: Sequence[float],
        *,
        interval: int = 128,
        sigma: float = 6.0,
        num_steps_before: int | None = None,
        device: torch.device | str = "cpu",
    ) -> SkipWindow:
        """The window that a trainer held, from what it logged.

        Args:
            losses: cross-entropy as logged (without z-loss) of the steps just before the one to be taken, oldest
                first; what is older than K steps is not needed. Logs that were rounded give another window.
            grad_norms: of the same steps, before clipping; empty if the run did not clip.
            num_steps_before: how many steps the trainer had taken since it was last started; None: at least K.
        """
        assert not grad_norms or len(grad_norms) == len(losses), "losses and norms of the same steps"
        held = interval if num_steps_before is None else min(num_steps_before, interval)
        known = min(len(losses), held)
        return cls(
            interval=interval,
            sigma=sigma,
            losses=_tensors(losses[-known:] if known else (), device),
            grad_norms=_tensors(grad_norms[-known:] if known else (), device),
            num_missing=held - known,
        )

    @property
    def is_complete(self) -> bool:
        """Whether it judges as the trainer did; if not, as a trainer restarted where its memory begins."""
        return self.num_missing == 0

    def append(self, loss: torch.Tensor, grad_norm: torch.Tensor | None) -> None:
        """Add the step that is to be judged: 0-d tensors, the norm before clipping; None: the run does not clip."""
        self.losses.append(loss.detach().clone())
        if grad_norm is not None:
            self.grad_norms.append(grad_norm.detach().clone())
        # The oldest leave first, and those that are missing are the oldest.
        self.num_missing = max(min(self.num_missing, self.interval + 1 - len(self.losses)), 0)
        del self.losses[: -(self.interval + 1)]
        del self.grad_norms[: -(self.interval + 1)]

    def step_factor(self) -> torch.Tensor:
        """1.0 if the newest step is to be taken, 0.0 if it is to be left out; 0-d fp32.

        Nothing is left out before half the window is full.
        """
        if len(self.losses) < max(2, self.interval // 2):
            return torch.ones((), device=self.losses[-1].device if self.losses else None)
        take = self._is_ordinary(self.losses)
        if self.grad_norms:
            take = torch.logical_and(take, self._is_ordinary(self.grad_norms))
        return take.float()

    def _is_ordinary(self, values: list[torch.Tensor]) -> torch.Tensor:
        deviation, mean = torch.std_mean(torch.stack(values[:-1]))
        return (values[-1] - mean) <= self.sigma * deviation

    def to_json(self) -> dict[str, Any]:
        """Everything it holds, numbers as hexadecimal floats, so that nothing is rounded."""
        return {
            "interval": self.interval,
            "sigma": self.sigma,
            "num_missing": self.num_missing,
            "losses": [float(loss).hex() for loss in self.losses],
            "grad_norms": [float(grad_norm).hex() for grad_norm in self.grad_norms],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, device: torch.device | str = "cpu") -> SkipWindow:
        """What `to_json` wrote.

        Raises:
            CorruptFile: it is something else.
        """
        try:
            return cls(
                interval=int(content["interval"]),
                sigma=float(content["sigma"]),
                losses=_tensors([float.fromhex(loss) for loss in content["losses"]], device),
                grad_norms=_tensors([float.fromhex(grad_norm) for grad_norm in content["grad_norms"]], device),
                num_missing=int(content["num_missing"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFile(f"the memory of the skip rule cannot be read: {error}") from error


class SkipStepAdamW(torch.optim.Optimizer):
    """AdamW whose every change is multiplied by the judgement of a window.

    Append the step's loss and gradient norm to `window` before `step()`. State per parameter: `step` (0-d fp32: updates
    that were applied), `exp_avg`, `exp_avg_sq`.

    Args:
        params, lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        window: None: an empty one, in which the first steps are never left out.
        foreach: all parameters of a group at once. The first moment is rounded otherwise than one by one, so this
            belongs to the recipe.
        dtype: of the moments; None: of the parameters.
        step_increment_bugfix: False: `step` stays what it is, as before June 2025, so that the corrections of the
            moments' bias never fade.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        window: SkipWindow | None = None,
        foreach: bool = True,
        dtype: torch.dtype | None = None,
        step_increment_bugfix: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.window = SkipWindow() if window is None else window
        self.foreach = foreach
        self.dtype = dtype
        self.step_increment_bugfix = step_increment_bugfix
        self.last_factor: torch.Tensor | None = None

    @property
    def skipped_last_step(self) -> bool:
        """Whether the last step was left out. Waits for the device."""
        return self.last_factor is not None and not self.last_factor.item()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Apply one update, or leave it out."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        factor = self.window.step_factor()
        self.last_factor = factor
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            factor = factor.to(parameters[0].device)
            states = [self._state_of(parameter) for parameter in parameters]
            if self.foreach:
                _update_together(parameters, states, group, factor)
            else:
                for parameter, state in zip(parameters, states, strict=True):
                    _update_one(parameter, state, group, factor)
            if self.step_increment_bugfix:
                for state in states:
                    state["step"].add_(factor)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=self.dtype)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.dtype)
        return state


def _update_one(
    parameter: torch.Tensor, state: Mapping[str, torch.Tensor], group: Mapping[str, Any], factor: torch.Tensor
) -> None:
    """The update of one parameter; `factor` is 1 or 0."""
    learning_rate, (beta1, beta2) = group["lr"], group["betas"]
    gradient, mean, square, step = parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"]
    assert gradient is not None

    parameter.mul_(1 - factor * (learning_rate * group["weight_decay"]))
    mean.lerp_(gradient.type_as(mean), (factor * (1 - beta1)).type_as(mean))
    square.mul_(1 - factor * (1 - beta2))
    square.add_(factor * gradient * gradient, alpha=1 - beta2)

    correction1, correction2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    denominator = (square.sqrt() / correction2.sqrt()).add_(group["eps"])
    change = -(learning_rate / correction1) * torch.div(mean, denominator)
    parameter.add_(change.mul_(factor))


def _update_together(
    parameters: list[torch.Tensor],
    states: Sequence[Mapping[str, torch.Tensor]],
    group: Mapping[str, Any],
    factor: torch.Tensor,
) -> None:
    """The update of a group with torch's multi-tensor kernels; `factor` is 1 or 0."""
    learning_rate, (beta1, beta2) = group["lr"], group["betas"]
    means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

    torch._foreach_mul_(parameters, 1 - factor * (learning_rate * group["weight_decay"]))
    gradients = [
        parameter.grad.type_as(mean)
        for parameter, mean in zip(parameters, means, strict=True)
        if parameter.grad is not None
    ]
    # Scaled and added in two operations, not interpolated in one: other roundings than `_update_one` has.
    for moments, values, weight in (
        (means, gradients, factor * (1 - beta1)),
        (squares, torch._foreach_mul(gradients, gradients), factor * (1 - beta2)),
    ):
        torch._foreach_mul_(moments, 1.0 - weight)
        torch._foreach_add_(moments, torch._foreach_mul(values, weight))

    # All corrections in one tensor: its kernel rounds otherwise than that of a single number.
    steps = torch.stack([state["step"] for state in states])
    corrections1, corrections2 = 1 - torch.pow(beta1, steps + 1), 1 - torch.pow(beta2, steps + 1)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, corrections2.sqrt().unbind())
    torch._foreach_add_(denominators, group["eps"])
    changes = torch._foreach_div(means, denominators)
    torch._foreach_mul_(changes, (-factor * (learning_rate / corrections1)).unbind())
    torch._foreach_add_(parameters, changes)


def _tensors(values: Iterable[float], device: torch.device | str) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float32, device=device) for value in values]
