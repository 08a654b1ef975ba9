"""TrainState: the tensors of a checkpoint once loaded, and its form on disk."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_index.errors import CorruptFile
from data_index.files import atomic_folder, read_json, write_json
from data_index.run import Checkpoint
from replay.models import build_model, trainer_parameters
from replay.recipe import Recipe
from replay.weights import read_optimizer, read_weights, write_safetensors


@dataclass(slots=True, kw_only=True, eq=False)
class TrainState:
    """Weights, Adam moments, and how far training has come. `train_step` changes it in place.

    Attributes:
        step: the checkpoint this state equals.
        tokens: tokens consumed so far, masked ones included.
    """

    model: torch.nn.Module
    optimizer: torch.optim.AdamW
    step: int
    tokens: int
    device: torch.device

    def parameters_in_order(self, convention: str) -> list[torch.nn.Parameter]:
        named = dict(self.model.named_parameters())
        return [named[ours] for ours in trainer_parameters(named, convention).values()]


def initial_state(recipe: Recipe, *, seed: int, device: torch.device) -> TrainState:
    """Checkpoint 0: random weights from the seed, empty moments."""
    model = build_model(recipe.model, device=device, seed=seed)
    return TrainState(model=model, optimizer=build_optimizer(model, recipe, device), step=0, tokens=0, device=device)


def build_optimizer(model: torch.nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW with one group without weight decay and one with it, parameters in the model's order.

    On the CPU torch's default kernel is used, which is what trainers there used; on a GPU the fused one.
    """
    exempt = [p for name, p in model.named_parameters() if name in recipe.no_decay]
    decayed = [p for name, p in model.named_parameters() if name not in recipe.no_decay]
    groups = [{"params": exempt, "weight_decay": 0.0}] if exempt else []
    return torch.optim.AdamW(
        [*groups, {"params": decayed, "weight_decay": recipe.weight_decay}],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=True if device.type == "cuda" else None,
    )


def load_state(checkpoint: Checkpoint, recipe: Recipe, *, device: torch.device) -> TrainState:
    """Everything a checkpoint holds: weights, moments, position, RNG.

    Raises:
        MissingState: it lacks optimizer state.
        MissingFile, CorruptFile, UnsafeFile
    """
    model = build_model(recipe.model, device=device)
    load_weights(model, read_weights(checkpoint), checkpoint)
    optimizer = build_optimizer(model, recipe, device)
    names = {name: p for name, p in model.named_parameters()}
    moments = read_optimizer(checkpoint)
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
        restore_rng(read_json(checkpoint.location / "state.json"), checkpoint)
    return TrainState(
        model=model, optimizer=optimizer, step=checkpoint.step, tokens=checkpoint.tokens or 0, device=device
    )


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
        }
        write_json(folder / "state.json", content)


def restore_rng(state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Set torch's CPU generator as the checkpoint left it. No supported recipe draws from it during a step."""
    try:
        raw = bytearray(base64.b64decode(state["rng"]["torch"], validate=True))
        torch.set_rng_state(torch.frombuffer(raw, dtype=torch.uint8))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"{checkpoint.location}/state.json holds no RNG state: {error}") from error
