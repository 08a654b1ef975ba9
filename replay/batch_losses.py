"""The forward half of a step: what the model reads, what it is to predict, and the losses: summed, or token by token.

`train_step` backpropagates the sums of micro-batches, in the trainers' order of operations. Whoever asks which rows and
tokens made up a step's loss takes the losses one by one with the weight that each row has in it:

    (batch_losses(...).sum(dim=1) * row_weights(...)).sum()  is the step's loss, up to rounding

Sources: Python packages ai2-olmo-core 3.0.0 (nn/functional/cross_entropy_loss.py) and ai2-olmo 0.6.0 (olmo/train.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F

from data_index.batch import Batch, denominator_of_rows
from replay.models import document_masks
from replay.recipe import Recipe

IGNORED = -100


@torch.no_grad()
def batch_losses(
    model: torch.nn.Module,
    batch: Batch,
    recipe: Recipe,
    *,
    device: torch.device,
    rows_at_once: int | None = None,
    with_z_loss: bool = False,
) -> torch.Tensor:
    """The loss of every token of a batch as the step takes it, nats, fp32 of shape [rows, length - 1].

    Entry [i, t] is the loss of predicting token t + 1 of row i, and 0 where that token is no target.

    Args:
        rows_at_once: rows per forward pass; None: as many as the recipe's micro-batches have.
        with_z_loss: add each token's z-loss, which is part of what the step's gradient is taken of.
    """
    token_ids = torch.from_numpy(batch.token_ids).to(device)
    counts = torch.from_numpy(batch.counts_as_target).to(device)
    size = rows_at_once or recipe.instances_per_microbatch or len(token_ids)
    parts = zip(token_ids.split(size), counts.split(size), strict=True)
    return torch.cat([token_losses(model, *part, recipe, with_z_loss=with_z_loss) for part in parts])


def loss_of_rows(
    model: torch.nn.Module, batch: Batch, recipe: Recipe, rows: slice, *, device: torch.device
) -> torch.Tensor:
    """What some rows of a batch add to the step's loss, z-loss included, with gradients; 0-d.

    Over all rows it adds up to what the step's gradient is taken of.
    """
    token_ids = torch.from_numpy(batch.token_ids[rows]).to(device)
    counts = torch.from_numpy(batch.counts_as_target[rows]).to(device)
    weights = row_weights(batch, recipe, device=device)[rows].float()
    return (token_losses(model, token_ids, counts, recipe, with_z_loss=True).sum(dim=1) * weights).sum()


def row_weights(batch: Batch, recipe: Recipe, *, device: torch.device) -> torch.Tensor:
    """What the summed losses of each row are multiplied by in the step's loss, fp64 of shape [rows].

    0 for the rows of a rank that has no target.
    """
    denominators = torch.from_numpy(denominators_of_rows(batch, recipe)).to(device)
    return torch.where(denominators > 0, 1.0 / denominators.double(), 0.0)


def denominators_of_rows(batch: Batch, recipe: Recipe) -> np.ndarray:
    """What the summed loss of each row is divided by in the step's loss, int64 of shape [rows].

    Rank r of W holds every W-th row from the r-th on. Each divides by its own denominator, and gradients are averaged
    over ranks. 0 for the rows of a rank that has no target: they are left out.
    """
    if batch.loss_denominator is not None:
        return np.full(len(batch.token_ids), batch.loss_denominator, dtype=np.int64)
    by_row = denominator_of_rows(batch, recipe.denominator)
    ranks = min(recipe.num_ranks, len(by_row))
    denominators = np.empty(len(by_row), dtype=np.int64)
    for rank in range(ranks):
        denominators[rank::ranks] = by_row[rank::ranks].sum() * ranks
    return denominators


def microbatches(
    batch: Batch, recipe: Recipe, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, which of them are targets, and the denominator: of each micro-batch of each rank in turn."""
    token_ids = torch.from_numpy(batch.token_ids).to(device)
    counts = torch.from_numpy(batch.counts_as_target).to(device)
    denominators = denominators_of_rows(batch, recipe)
    ranks = min(recipe.num_ranks, len(token_ids))
    for rank in range(ranks):
        if not denominators[rank]:
            continue
        # A tensor on the device, not a number: CUDA multiplies by the reciprocal of a number.
        denominator = torch.tensor(int(denominators[rank]), device=device)
        rows, counted = token_ids[rank::ranks], counts[rank::ranks]
        size = recipe.instances_per_microbatch or len(rows)
        for ids, wanted in zip(rows.split(size), counted.split(size), strict=True):
            yield ids, wanted, denominator


def summed_losses(
    model: torch.nn.Module, token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and z-loss of a micro-batch in fp32, 0-d, with gradients.

    Args:
        token_ids, counts: [rows, length]; what is read, and which of it counts as a target.
    """
    flat, wanted = logits_and_labels(model, token_ids, counts, recipe)
    cross_entropy = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum")
    if not recipe.z_loss:
        return cross_entropy, torch.zeros_like(cross_entropy)
    z_squared = (flat.logsumexp(-1).pow(2) * (wanted != IGNORED)).sum()
    return cross_entropy, recipe.z_loss * z_squared


def token_losses(
    model: torch.nn.Module, token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe, *, with_z_loss: bool
) -> torch.Tensor:
    """The same losses before they are summed, fp32 of shape [rows, length - 1]; 0 where the next token is no target."""
    flat, wanted = logits_and_labels(model, token_ids, counts, recipe)
    losses = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
    if with_z_loss and recipe.z_loss:
        losses = losses + recipe.z_loss * flat.logsumexp(-1).pow(2) * (wanted != IGNORED)
    return losses.view(len(token_ids), -1)[:, : token_ids.shape[1] - 1]


def logits_and_labels(
    model: torch.nn.Module, token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's fp32 logits, [rows * places, vocabulary], and the label of each, [rows * places]."""
    inputs, labels = inputs_and_labels(token_ids, counts, recipe)
    settings = {}
    if recipe.document_end_token is not None:
        settings["attention_mask"] = document_masks(inputs, recipe.document_end_token, recipe.model)
    with autocast(recipe, token_ids.device):
        logits = model(input_ids=inputs, **settings).logits
    if recipe.labels == "last_dropped":
        logits = logits[:, :-1].contiguous()
    return logits.float().view(-1, logits.shape[-1]), labels.reshape(-1)


def inputs_and_labels(
    token_ids: torch.Tensor, counts: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model reads, and the next token at each place where its loss is taken (IGNORED: no target).

    The last token of a row predicts nothing (`last_ignored` keeps its place in the sum, `last_dropped` takes it out
    first: equal in exact arithmetic, not in bits), or is only predicted (`extra_token`).
    """
    labels = torch.where(counts, token_ids, IGNORED)[:, 1:]
    if recipe.labels == "extra_token":
        return token_ids[:, :-1], labels
    return token_ids, F.pad(labels, (0, 1), value=IGNORED) if recipe.labels == "last_ignored" else labels


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
