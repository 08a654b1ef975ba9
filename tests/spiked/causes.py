"""Known causes of a spike: rows that are planted among ordinary ones, and what is done to the state or the rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from replay.recipe import Recipe
from replay.train_state import TrainState
from tests.spiked.text import Text

Random = np.random.Generator
Spoil = Callable[[np.ndarray, Text, Random], np.ndarray]  # ordinary rows [num, length] -> bad ones


def repeated_ngram(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """One n-gram of rare tokens over and over."""
    period = int(random.integers(1, 14))
    return np.resize(random.choice(text.rare, size=period), rows.shape[1])[None].repeat(len(rows), axis=0)


def random_bytes(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """A binary file read as Latin-1 text."""
    return np.stack([text.encode(random.bytes(2 * rows.shape[1]).decode("latin-1"), rows.shape[1]) for _ in rows])


def shuffled_bytes(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """The bytes of the token file itself in random order."""
    vocabulary = text.tokenizer.get_vocab_size()
    shuffled = random.permutation(rows.astype("<u2").view(np.uint8), axis=1)
    return np.ascontiguousarray(shuffled).view("<u2").astype(np.int64) % vocabulary


def foreign_language(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """The same words in Greek letters."""
    greek = {ord(latin): 0x3B1 + number for number, latin in enumerate("abcdefghijklmnopqrstuvwx")}
    return np.stack([text.encode(text.decode(row).translate(greek), rows.shape[1]) for row in rows])


def mislabelled(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """Text that was tokenized with another vocabulary: the ids mean something else."""
    return random.permutation(text.tokenizer.get_vocab_size())[rows]


def span_of_ngrams(rows: np.ndarray, text: Text, random: Random) -> np.ndarray:
    """Ordinary rows with half of each an n-gram of rare tokens over and over."""
    rows, half = rows.copy(), rows.shape[1] // 2
    for row in rows:
        start = int(random.integers(4, half - 4))
        row[start : start + half] = np.resize(random.choice(text.rare, size=int(random.integers(1, 14))), half)
    return rows


def forget_second_moments(state: TrainState, random: Random) -> None:
    """Second moments far too small, as after a faulty write: the next updates are far too large."""
    factor = 10.0 ** -float(random.uniform(3, 5))
    for moments in state.optimizer.state.values():
        moments["exp_avg_sq"].mul_(factor)


def noise_in_first_moments(state: TrainState, random: Random) -> None:
    """First moments of one kind of matrix replaced by noise a hundred times their size."""
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    kind = str(random.choice(["down_proj", "o_proj", "embed_tokens"]))
    for name, parameter in state.model.named_parameters():
        if kind in name:
            moment = state.optimizer.state[parameter]["exp_avg"]
            moment.copy_(torch.randn(moment.shape, generator=generator) * 100 * moment.std())


def glitched_rate(recipe: Recipe, step: int, random: Random) -> Recipe:
    """A learning rate far too high, for one step."""
    factor = float(random.uniform(20, 50))
    return replace(recipe, base_rate_changes=((step, factor), (step + 1, 1 / factor)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What makes the spike of a run.

    Attributes:
        rows: so many rows of the step are spoilt; spoil: how; None: the data are not the cause.
        tamper: done to the state before the step. recipe: how the run is trained instead.
        recorded: the run's own record tells of it: a checkpoint taken after the tampering, a recipe with the glitch.
    """

    rows: int = 0
    spoil: Spoil | None = None
    tamper: Callable[[TrainState, Random], None] | None = None
    recipe: Callable[[Recipe, int, Random], Recipe] | None = None
    recorded: bool = False


CAUSES: Mapping[str, tuple[Cause, ...]] = {
    "repeated n-gram": (Cause(rows=1, spoil=repeated_ngram),),
    "binary or shuffled bytes": (Cause(rows=1, spoil=random_bytes), Cause(rows=3, spoil=shuffled_bytes)),
    "foreign or mislabelled block": (Cause(rows=3, spoil=foreign_language), Cause(rows=3, spoil=mislabelled)),
    "span in an ordinary row": (Cause(rows=1, spoil=span_of_ngrams),),
    "moment corruption": (
        Cause(tamper=forget_second_moments),
        Cause(tamper=forget_second_moments, recorded=True),
        Cause(tamper=noise_in_first_moments),
        Cause(tamper=noise_in_first_moments, recorded=True),
    ),
    "learning-rate glitch": (Cause(recipe=glitched_rate), Cause(recipe=glitched_rate, recorded=True)),
    "nothing": (Cause(),),
}
