"""Observers that forensics hands to a fork: statistics of `probes`, taken at the right moments of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from data_index.batch import Batch
from data_index.run import Checkpoint
from probes.loss import mean_loss
from probes.norms import norms_by_group, travel_distance
from replay.models import layer_of
from replay.train_state import TrainState, load_weights, weight_tensors
from replay.weights import read_weights

Seen = tuple[Mapping[str, float], Mapping[str, np.ndarray]]


def layers_of_model(model: torch.nn.Module) -> dict[str, list[str]]:
    """Layer name -> names of its parameters, in the model's order."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layers.setdefault(layer_of(name), []).append(name)
    return layers


@dataclass(slots=True, kw_only=True)
class NormTrace:
    """Norms of weights, gradients (before clipping) and updates, per layer; and of the whole update.

    Arrays of one step: weight_norm, grad_norm_by_layer, update_norm_by_layer, fp64 of shape [layers].
    """

    layers: Mapping[str, list[str]]
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)

    def before_step(self, state: TrainState, batch: Batch) -> None:
        self.before = {name: tensor.clone() for name, tensor in weight_tensors(state).items()}

    def before_update(self, state: TrainState, batch: Batch) -> None:
        named = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
        self.gradients = norms_by_group(named, self.layers)

    def after_step(self, state: TrainState, batch: Batch) -> Seen:
        after = weight_tensors(state)
        updates = norms_by_group({name: after[name] - self.before[name] for name in after}, self.layers)
        arrays = {
            "weight_norm_by_layer": np.array(norms_by_group(after, self.layers)),
            "grad_norm_by_layer": np.array(self.gradients),
            "update_norm_by_layer": np.array(updates),
        }
        return {"update_norm": float(np.linalg.norm(updates))}, arrays


@dataclass(slots=True, kw_only=True)
class ParentComparison:
    """At each step where the parent has a checkpoint: held-out loss of both, and how far their weights are apart.

    Attributes:
        checkpoints: the parent's, by step.
        start: weights at the fork point.
        heldout: token ids of shape [rows, length], or None where the run has none.
        last_step: the fork's own held-out loss is also taken here.
    """

    checkpoints: Mapping[int, Checkpoint]
    layers: Mapping[str, list[str]]
    start: Mapping[str, torch.Tensor]
    heldout: np.ndarray | None
    last_step: int

    def before_step(self, state: TrainState, batch: Batch) -> None: ...

    def before_update(self, state: TrainState, batch: Batch) -> None: ...

    def after_step(self, state: TrainState, batch: Batch) -> Seen:
        scalars: dict[str, float] = {}
        parent = self.checkpoints.get(batch.step)
        if self.heldout is not None and (parent is not None or batch.step == self.last_step):
            scalars["heldout_loss"] = mean_loss(state.model, self.heldout)
        if parent is not None:
            theirs = read_weights(parent)
            ours = weight_tensors(state)
            for layer, names in self.layers.items():
                scalars[f"distance/{layer}"] = travel_distance(ours, theirs, self.start, names)
            scalars["distance/all"] = travel_distance(ours, theirs, self.start, list(theirs))
            if self.heldout is not None:
                scalars["parent_heldout_loss"] = self._loss_of_parent(state, theirs, parent)
        return scalars, {}

    def _loss_of_parent(self, state: TrainState, theirs: Mapping[str, torch.Tensor], parent: Checkpoint) -> float:
        """Held-out loss with the parent's weights, in the same model object; the fork's exact bits are put back."""
        assert self.heldout is not None
        kept = {name: tensor.clone() for name, tensor in weight_tensors(state).items()}
        try:
            load_weights(state.model, theirs, parent)
            return mean_loss(state.model, self.heldout)
        finally:
            with torch.no_grad():
                for name, parameter in state.model.named_parameters():
                    parameter.copy_(kept[name])
