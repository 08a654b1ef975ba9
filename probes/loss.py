"""Cross-entropy of a model on token rows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


@torch.no_grad()
def token_losses(model: torch.nn.Module, token_ids: np.ndarray, rows_at_once: int = 16) -> np.ndarray:
    """Loss of every token but the first of each row, nats, fp32 of shape [rows, length - 1].

    The model's mode (training or not) is left as it is: the supported models have no dropout.
    """
    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(token_ids), rows_at_once):
        ids = torch.from_numpy(np.ascontiguousarray(token_ids[start : start + rows_at_once], dtype=np.int64)).to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
        losses.append(flat.view(len(ids), -1).cpu().numpy())
    return np.concatenate(losses)


def mean_loss(model: torch.nn.Module, token_ids: np.ndarray) -> float:
    """Mean cross-entropy over all predicted tokens, nats per token."""
    return float(token_losses(model, token_ids).mean(dtype=np.float64))
