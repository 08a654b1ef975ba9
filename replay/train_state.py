"""TrainState: the tensors of a checkpoint once loaded, and its form on disk."""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError
from data_index.files import atomic_folder, read_json_object, write_json
from data_index.run import Checkpoint
from replay.models import build_model
from replay.parameter_names import trainer_tensors
from replay.recipe import Recipe
from replay.skip_step import SkipStepAdamW, SkipWindow
from replay.weights import read_optimizer, read_weights, stored_weights, write_safetensors


@dataclass(slots=True, kw_only=True, eq=False)
class TrainState:
    """Weights, Adam moments, and how far training has come. `train_step` changes it in place.

    Attributes:
        step: the checkpoint this state equals.
        tokens: tokens consumed so far, masked ones included.
        num_skipped: steps so far that were consumed but not applied.
        restarted: no step has been taken since a checkpoint was loaded.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    tokens: int
    device: torch.device
    num_skipped: int = 0
    restarted: bool = True

    def trainer_parameters(self, recipe: Recipe) -> list[tuple[torch.nn.Parameter, ...]]:
        """Parameters in the trainer's order; several stand together where the trainer holds them as one."""
        named = dict(self.model.named_parameters())
        tensors = trainer_tensors(named, recipe.parameter_order, recipe.no_decay)
        return [tuple(named[name] for name in names) for names in tensors.values()]


def initial_state(recipe: Recipe, *, seed: int, device: torch.device) -> TrainState:
    """Checkpoint 0: random weights from the seed, empty moments."""
    model = build_model(recipe.model, device=device, seed=seed)
    return TrainState(model=model, optimizer=build_optimizer(model, recipe, device), step=0, tokens=0, device=device)


def build_optimizer(model: torch.nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """One group without weight decay and one with it, parameters in the model's order.

    AdamW on the CPU is torch's default kernel, which is what trainers there used; on a GPU the fused one.
    """
    exempt = [p for name, p in model.named_parameters() if name in recipe.no_decay]
    decayed = [p for name, p in model.named_parameters() if name not in recipe.no_decay]
    groups: list[dict[str, Any]] = [{"params": exempt, "weight_decay": 0.0}] if exempt else []
    groups.append({"params": decayed, "weight_decay": recipe.weight_decay})
    common: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.eps}
    if recipe.skip is None:
        return torch.optim.AdamW(groups, **common, fused=True if device.type == "cuda" else None)
    return SkipStepAdamW(
        groups,
        **common,
        window=SkipWindow(interval=recipe.skip.interval, sigma=recipe.skip.sigma),
        foreach=recipe.skip.foreach,
        step_increment_bugfix=recipe.skip.counts_steps,
    )


def state_of_weights(checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device) -> TrainState:
    """A checkpoint's weights, with an optimizer that remembers nothing.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    require_fitting(recipe, checkpoint)
    model = build_model(recipe.model, device=device)
    load_weights(model, read_weights(checkpoint), checkpoint)
    optimizer = build_optimizer(model, recipe, device)
    return TrainState(
        model=model, optimizer=optimizer, step=checkpoint.step, tokens=checkpoint.tokens or 0, device=device
    )


def load_state(
    checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device, fresh_optimizer: bool = False
) -> TrainState:
    """Everything a checkpoint holds: weights, moments, position, RNG.

    Args:
        fresh_optimizer: where it lacks optimizer state, start with that of a first step: moments of zero.
    Raises:
        MissingState: it lacks optimizer state.
        MissingFile, CorruptFile, UnsafeFile
    """
    state = state_of_weights(checkpoint, recipe, device=device)
    optimizer = state.optimizer
    names = {name: p for name, p in state.model.named_parameters()}
    lacking = fresh_optimizer and "optimizer" not in checkpoint.states
    moments = {"exp_avg": {}} if lacking else read_optimizer(checkpoint)
    for moment, tensors in moments.items():
        # A checkpoint taken before the first update has no moments; torch then starts them at zero.
        if tensors and set(tensors) != set(names):
            raise CorruptFile(f"checkpoint {checkpoint.step} of {checkpoint.run}: {moment} does not match the model")
    if moments["exp_avg"]:
        for name, parameter in names.items():
            optimizer.state[parameter] = {
                "step": moments["step"][name].to(torch.float32),
                "exp_avg": moments["exp_avg"][name].to(device),
                "exp_avg_sq": moments["exp_avg_sq"][name].to(device),
            }
            if device.type == "cuda":
                optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].to(device)
    if checkpoint.layout == "native":
        _restore(state, read_json_object(checkpoint.location / "state.json"), checkpoint)
    return state


def _restore(state: TrainState, saved: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """What a native checkpoint holds besides tensors: RNG, skipped steps, the window of the skip rule."""
    restore_rng(saved, checkpoint)
    try:
        state.num_skipped = int(saved.get("num_skipped", 0))
        state.restarted = bool(saved.get("restarted", state.step == 0))
        if isinstance(state.optimizer, SkipStepAdamW) and "skip_window" in saved:
            state.optimizer.window = SkipWindow.from_json(saved["skip_window"], device=state.device)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{checkpoint.location}/state.json lacks or misstates {error}") from error


def require_fitting(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Hold the model config against what the checkpoint stores, before a model takes memory for what it claims.

    Raises:
        CorruptFile: it claims more parameters, or cannot be a model.
    """
    stored = stored_weights(checkpoint)
    where = f"the weights of checkpoint {checkpoint.step} of {checkpoint.run}"
    if recipe.model.get("num_hidden_layers", 0) > len(stored):
        raise CorruptFile(f"{where} do not fit its model config: {recipe.model['num_hidden_layers']} layers")
    try:
        model = build_model(recipe.model, device=torch.device("meta"))
    except ForensicsError:
        raise
    except (*UNFORESEEN, RuntimeError) as error:
        raise CorruptFile(f"the model config of {checkpoint.run} describes no model: {error!r}") from error
    claimed = sum(parameter.numel() for parameter in model.parameters())
    there = sum(math.prod(part.shape) for part in stored.values())
    if claimed > 2 * there:
        raise CorruptFile(f"{where} do not fit its model config: {there:,} numbers for {claimed:,} parameters")


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    """Copy weights into a model.

    Raises:
        CorruptFile: names or shapes differ.
    """
    own = dict(model.named_parameters())
    tied = set(own) ^ set(weights)
    if tied or any(own[name].shape != tensor.shape for name, tensor in weights.items()):
        wrong = sorted(tied) or [name for name, tensor in weights.items() if own[name].shape != tensor.shape]
        raise CorruptFile(
            f"the weights of checkpoint {checkpoint.step} of {checkpoint.run} do not fit its model config: {wrong[:3]}"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def weight_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in state.model.named_parameters()}


def moment_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    """Adam state as flat names: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
    return {
        f"{moment}.{name}": state.optimizer.state[parameter][moment]
        for name, parameter in state.model.named_parameters()
        if parameter in state.optimizer.state
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptState:
    """A copy of a state in memory, to come back to: weights and moments by parameter name, and all that counts."""

    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, Mapping[str, torch.Tensor]]
    counts: tuple[int, int, int, bool]
    skip_window: SkipWindow | None


def keep_state(state: TrainState) -> KeptState:
    """Copy a state on its own device; it takes as much memory again as weights and moments do."""
    optimizer = state.optimizer
    named = dict(state.model.named_parameters())
    held = {name: optimizer.state[p] for name, p in named.items() if p in optimizer.state}
    return KeptState(
        weights={name: p.detach().clone() for name, p in named.items()},
        moments={name: {key: tensor.clone() for key, tensor in moments.items()} for name, moments in held.items()},
        counts=(state.step, state.tokens, state.num_skipped, state.restarted),
        skip_window=copy.deepcopy(optimizer.window) if isinstance(optimizer, SkipStepAdamW) else None,
    )


def return_to(state: TrainState, kept: KeptState) -> None:
    """Set a state back to a copy of it, bit for bit; the copy can be returned to again."""
    for name, parameter in state.model.named_parameters():
        with torch.no_grad():
            parameter.copy_(kept.weights[name])
        parameter.grad = None
        if name in kept.moments:
            state.optimizer.state[parameter] = {key: t.clone() for key, t in kept.moments[name].items()}
        else:
            state.optimizer.state.pop(parameter, None)
    state.step, state.tokens, state.num_skipped, state.restarted = kept.counts
    if isinstance(state.optimizer, SkipStepAdamW) and kept.skip_window is not None:
        state.optimizer.window = copy.deepcopy(kept.skip_window)


def save_state(state: TrainState, location: Path) -> None:
    """Write a native checkpoint folder; it appears whole, by rename.

    Raises:
        DiskFull
    """
    with atomic_folder(location) as folder:
        weights = write_safetensors(folder / "model.safetensors", weight_tensors(state))
        optimizer = write_safetensors(folder / "optimizer.safetensors", moment_tensors(state))
        content: dict[str, Any] = {
            "step": state.step,
            "tokens": state.tokens,
            "weights_sha256": weights,
            "optimizer_sha256": optimizer,
            "rng": {"torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()},
            "num_skipped": state.num_skipped,
            "restarted": state.restarted,
        }
        if isinstance(state.optimizer, SkipStepAdamW):
            content["skip_window"] = state.optimizer.window.to_json()
        write_json(folder / "state.json", content)


def restore_rng(state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Set torch's CPU generator as the checkpoint left it. No supported recipe draws from it during a step."""
    try:
        raw = bytearray(base64.b64decode(state["rng"]["torch"], validate=True))
        torch.set_rng_state(torch.frombuffer(raw, dtype=torch.uint8))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"{checkpoint.location}/state.json holds no RNG state: {error}") from error
