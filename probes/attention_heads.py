"""What each attention head looks at: entropy, the first token, how far back.

Means are over queries that see at least two positions: the first one has no choice. Heads are [layers, heads], heads
counted as query heads.

Source: the entropy over the keys that a query sees, and its share of the log of their number, as used to watch training
collapse in Zhai et al. 2023 (arXiv 2303.06296, without the share); attention to the first token as a sink in Xiao et
al. 2023 (arXiv 2309.17453).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.attention_weights import observe_attention


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadAttention:
    """Means over rows and queries, fp64 of shape [layers, heads].

    Attributes:
        entropy_nats: of a query's weights over the keys that it sees.
        entropy_share: the same divided by its largest value, the log of the number of keys seen: 1 is uniform.
        sink_mass: share of attention on the first token, over the queries that see it (in layers with a sliding window
            of W tokens the W - 1 queries after it). A uniform head has the mean of 1 / (number of keys seen).
        mean_distance_tokens: how far back attention goes; 0 is the query's own position.
    """

    entropy_nats: np.ndarray
    entropy_share: np.ndarray
    sink_mass: np.ndarray
    mean_distance_tokens: np.ndarray


def head_attention(model: Any, token_ids: np.ndarray, *, rows_at_once: int = 4) -> HeadAttention:
    """What each head looks at on token rows.

    Args:
        model: a causal language model of transformers; left as it was.
        token_ids: integers of shape [rows, length], without padding.
    Raises:
        ValueError: rows have fewer than two tokens, or the model shows no attention weights.
    """
    require_rows(token_ids, 2)
    sums: dict[int, torch.Tensor] = {}
    counts: dict[int, torch.Tensor] = {}

    def add(layer: int, weights: torch.Tensor, visible: torch.Tensor) -> None:
        batch_sums, batch_counts = _sums_of(weights, visible)
        sums[layer] = sums[layer] + batch_sums if layer in sums else batch_sums
        counts[layer] = counts[layer] + batch_counts if layer in counts else batch_counts

    observe_attention(model, token_ids, add, rows_at_once=rows_at_once)
    # [statistics, layers, heads]
    means = torch.stack([sums[layer] / counts[layer][:, None] for layer in sorted(sums)], dim=1).cpu().numpy()
    return HeadAttention(
        entropy_nats=means[0], entropy_share=means[1], sink_mass=means[2], mean_distance_tokens=means[3]
    )


def require_rows(token_ids: np.ndarray, shortest: int) -> None:
    """
    Raises:
        ValueError: there are no rows, or they are shorter than that.
    """
    if token_ids.ndim != 2 or not len(token_ids) or token_ids.shape[1] < shortest:
        raise ValueError(f"needs rows of at least {shortest} tokens, got an array of shape {token_ids.shape}")


def _sums_of(weights: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over rows and queries, fp64 [statistics, heads], and over how many they go, [statistics]."""
    visible = visible.expand(len(weights), -1, -1, -1)
    weights = weights.float() * visible
    num_seen = visible.sum(dim=-1)  # [rows, heads or 1, queries]
    has_choice = num_seen > 1
    sees_first = has_choice & visible[..., 0]
    entropies = torch.special.entr(weights).sum(dim=-1)
    values = (
        (entropies, has_choice),
        (entropies / num_seen.clamp(min=2).log(), has_choice),
        (weights[..., 0], sees_first),
        ((weights * _distances(weights)).sum(dim=-1), has_choice),
    )
    sums = [(value.double() * counted).sum(dim=(0, 2)) for value, counted in values]
    counts = [counted[:, 0].sum() for _, counted in values]
    return torch.stack(sums), torch.stack(counts)


def _distances(weights: torch.Tensor) -> torch.Tensor:
    """Query position minus key position, [queries, keys]."""
    places = torch.arange(weights.shape[-1], device=weights.device, dtype=torch.float32)
    return places[:, None] - places
