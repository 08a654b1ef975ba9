"""What a Megatron config asks for: which sequences are trained on, and how many samples of each dataset are wanted.

Source: megatron/data/data_utils.py of EleutherAI/gpt-neox @ ea7aefd8; megatron/data/dataset_utils.py of
bigscience-workshop/Megatron-DeepSpeed @ 8387ae17
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_index.errors import OrderMismatch


def split_borders(split: str, num_sequences: int) -> tuple[int, int, int, int]:
    """Borders of train, validation and test sequences for a string such as "969, 30, 1"; both trainers alike."""
    shares = [float(share) for share in split.split("," if "," in split else "/")][:3]
    shares = normalized(shares + [0.0] * (3 - len(shares)))
    borders = [0]
    for share in shares:
        borders.append(borders[-1] + round(share * float(num_sequences)))
    # What rounding gained or lost is taken from every border, not from the last one only.
    excess = borders[-1] - num_sequences
    return 0, borders[1] - excess, borders[2] - excess, num_sequences


def split_by_range(split: str, num_sequences: int) -> tuple[int, int]:
    """Sequences of Megatron-DeepSpeed's "start:end" shares, such as "0:0.949"."""
    start, stop = (round(float(share) * float(num_sequences)) for share in split.split(":"))
    return start, stop


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        OrderMismatch: they sum to nothing.
    """
    total = 0.0
    for weight in weights:  # not `sum`, which rounds otherwise since Python 3.12
        total += weight
    if total <= 0:
        raise OrderMismatch(f"the weights {list(weights)} sum to nothing")
    return [weight / total for weight in weights]


def weighted_num_samples(weights: Sequence[float], num_samples: int) -> list[int]:
    """Samples wanted of each dataset of a blend: its share of `num_samples`, and half a percent more.

    Both trainers do so where data paths are listed with weights, GPT-NeoX for a list of one too. GPT-NeoX's `data_path`
    and Megatron-DeepSpeed's single path take `num_samples` as it is.
    """
    return [math.ceil(num_samples * weight * 1.005) for weight in normalized(weights)]


def weights_by_num_documents(num_sequences: Sequence[int], alpha: float) -> list[float]:
    """GPT-NeoX's `weight_by_num_documents` with `weighted_sampler_alpha`."""
    if len(num_sequences) == 1:
        return [1.0]
    shares = [count / sum(num_sequences) for count in num_sequences]
    raised = normalized([share**alpha for share in shares])
    return normalized([weight * (1 - share) for weight, share in zip(raised, shares, strict=True)])
