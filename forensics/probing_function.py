"""A user's own function as a probe.

Any function of a model can be measured over all checkpoints: write it in a file, name it `module:function`.

    # my_probes.py, in the folder where `forensics` is started
    def median_loss(model, token_ids):            # transformers model, evaluation mode; int64 array [rows, length]
        ids = torch.from_numpy(token_ids).to(model.device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return {"median": losses.median(), "largest": losses.max()}

It returns a number, a dict of numbers by name, a `probes.probe.Measurement` (which has a unit and an interval), or a
list of those. A function that can be called with the model alone, `def norm(model)`, is; otherwise it is given rows of
held-out tokens as well. It runs without gradients; `torch.enable_grad()` inside turns them on. It may switch modes, but
must leave weights, config and hooks as they were: that is checked, and the checkpoint counts as failed otherwise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from data_index.errors import ChangedModel, FailedFunction
from forensics.users_functions import find_function, identity_of, takes
from probes.evaluation_mode import evaluation_mode
from probes.probe import Measurement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbingFunction:
    """A probe for models. It holds the function's name only, so that it can be sent to other processes.

    Attributes:
        name: `module:function`.
        token_ids: integers of shape [rows, length], held out from training; None: there are none.
    """

    name: str
    token_ids: np.ndarray | None = None

    def prepared(self) -> ProbingFunction:
        """Itself, if the function is there and can be called with what there is.

        Raises:
            FailedFunction
        """
        function = self._function()
        if self.token_ids is None and not takes(function, None):
            raise FailedFunction(
                f"{self.name} wants held-out tokens besides the model, and the run has none: write it as a function "
                "of the model alone"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """What its numbers depend on besides the model: another file or other rows make another probe.

        Raises:
            FailedFunction
        """
        function = self._function()
        return {"function": self.name, "sha256": identity_of(function), "rows": self._hash_of_rows(function)}

    def measure_model(self, model: Any) -> list[Measurement]:
        """
        Raises:
            FailedFunction: the function fails, or gives something else than measurements.
            ChangedModel: the model is not as it was before.
            torch.OutOfMemoryError
        """
        function = self.prepared()._function()
        before, gradients = _state_of(model), [(one, one.grad) for one in model.parameters()]
        for parameter, _ in gradients:
            parameter.grad = None
        said: Any = None
        failure: Exception | None = None
        with evaluation_mode(model), torch.no_grad():
            try:
                said = function(model) if takes(function, None) else function(model, self._rows())
            except Exception as error:  # the user's code
                failure = error
        for parameter, gradient in gradients:
            parameter.grad = gradient
        self._require_unchanged(before, _state_of(model), failure)
        if isinstance(failure, torch.OutOfMemoryError):
            raise failure
        if failure is not None:
            raise FailedFunction(f"{self.name} failed: {failure!r}") from failure
        return _measurements(said, self.name)

    def _function(self) -> Any:
        return find_function(self.name, option="", example="my_probes:median_loss")

    def _rows(self) -> np.ndarray:
        """A copy: what a function writes into it, the next one does not see."""
        return np.array(self.token_ids, dtype=np.int64)

    def _hash_of_rows(self, function: Any) -> str | None:
        if takes(function, None):
            return None
        rows = self._rows()
        return hashlib.sha256(str(rows.shape).encode() + rows.astype("<i8").tobytes()).hexdigest()

    def _require_unchanged(self, before: dict[str, Any], after: dict[str, Any], failure: Exception | None) -> None:
        changed = [name for name in (before | after) if before.get(name) != after.get(name)]
        if changed:
            raise ChangedModel(
                f"{self.name} changed {changed[0]} of the model ({len(changed):,} changes in all), and a probe changes "
                "nothing: work on a copy, or undo it before the function returns"
            ) from failure


def _state_of(model: Any) -> dict[str, Any]:
    """What a function may not change, by name: tensors, settings, hooks.

    A tensor is known by the sum of its bits, which one changed number changes, and by torch's count of writes to it,
    which tells where two numbers changed places.
    """
    state: dict[str, Any] = {
        name: (
            tensor.shape,
            tensor.dtype,
            tensor.device,
            tensor.requires_grad,
            0 if tensor.is_inference() else tensor._version,
            _sum_of_bits(tensor.detach()),
        )
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    state["the config"] = model.config.to_dict() | {"attention": model.config._attn_implementation}
    hooks = [vars(module) for module in model.modules()]
    state["the hooks"] = [len(found) for kept in hooks for name, found in kept.items() if name.endswith("_hooks")]
    return state


def _sum_of_bits(tensor: torch.Tensor) -> int:
    """Modulo 2^64; eight bytes at a time where the tensor's place allows, which is several times as fast."""
    flat, size = tensor.reshape(-1), tensor.element_size()
    whole = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[8 if whole else size]
    return int(flat.view(integers).sum(dtype=torch.int64))


def _measurements(said: Any, name: str) -> list[Measurement]:
    """
    Raises:
        FailedFunction
    """
    given = _given(said, name)
    if not given:
        raise FailedFunction(f"{name} measured nothing: it gave {said!r:.100}")
    twice = [metric for metric, times in Counter(one.metric for one in given).items() if times > 1]
    if twice:
        raise FailedFunction(f"{name} gave two numbers called {twice[0]!r}")
    return given


def _given(said: Any, name: str) -> list[Measurement]:
    if isinstance(said, Measurement):
        return [said]
    if isinstance(said, list | tuple) and all(isinstance(one, Measurement) for one in said):
        return list(said)
    if isinstance(said, Mapping) and all(isinstance(metric, str) and metric for metric in said):
        return [Measurement(metric=metric, value=_number(value, name), unit="") for metric, value in said.items()]
    return [Measurement(metric=name.partition(":")[2], value=_number(said, name), unit="")]


def _number(value: Any, name: str) -> float:
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        try:
            return float(value)
        except OverflowError as error:
            raise FailedFunction(f"{name} gave a number beyond those of double precision") from error
    raise FailedFunction(
        f"{name} gave {value!r:.100}, of type {type(value).__name__}; a probe gives a number, a dict of numbers by "
        "name, a Measurement, or a list of Measurements"
    )
