"""The mean cross-entropy of a causal language model as a function of its weights, to take gradients of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call


def differentiable_mean_loss(
    model: torch.nn.Module, token_ids: np.ndarray, parameters: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Mean cross-entropy over all predicted tokens of some rows, nats per token, fp32, 0-d, in the current mode.

    The model itself is left as it is: other weights are only lent to it for this call.

    Args:
        token_ids: [rows, length], all run at once.
        parameters: by name, to be used in place of the model's own; one name of tied weights stands for all of them.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.ascontiguousarray(token_ids, dtype=np.int64)).to(device)
    output = functional_call(model, dict(parameters or {}), (), {"input_ids": ids})
    logits = output.logits[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
