"""What prompting a model with its tokens found: can it repeat them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forensics.marked_text import shown

# Of rows, where tokens were verified; null for those that were not asked for.
MOST_FAILING = 0.1  # of ordinary tokens, for being verified to tell something
PROMPTS = ("input_output", "assistant_explain", "repeats")
VERDICT_COLUMNS = ("label", *(f"probability_{name}" for name in PROMPTS), "said")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One token.

    Attributes:
        probabilities: by prompt, the token's highest of the three places that the model went on to; only prompts that
            were asked.
        max_probability: the highest of them; a lower bound where not every prompt was asked.
        verified: by the published 1 % rule: the model cannot repeat it.
        label: the published one; None where it hangs on a prompt that was not asked.
        said: what the model went on with instead, after the dearest prompt that was asked.
    """

    token_id: int
    probabilities: Mapping[str, float]
    max_probability: float
    verified: bool
    label: str | None
    said: str

    def columns(self) -> dict[str, object]:
        """Of its row."""
        told = {"max_probability": self.max_probability, "verified": self.verified, "label": self.label}
        by_prompt = {f"probability_{name}": self.probabilities.get(name) for name in PROMPTS}
        return {**told, **by_prompt, "said": self.said}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Of one model.

    Attributes:
        candidates: by token id. controls: tokens above both cuts, evenly spaced in rank, that give the base rate.
        placeholder: the text that stood in the prompts when they were tokenized.
        lengths: tokens of the prompts, by name.
        every_prompt: False: no further prompt was asked about a token that one gave 1 %.
        num_asked: pairs of token and prompt that were asked now; the others were kept from before.
    """

    candidates: Mapping[int, Verdict]
    controls: tuple[Verdict, ...]
    placeholder: str
    lengths: Mapping[str, int]
    every_prompt: bool
    precision: str
    device: str
    num_asked: int
    seconds: float
    messages: tuple[str, ...] = ()

    @property
    def base_rate(self) -> tuple[int, int]:
        """Controls that the model cannot repeat either, of how many."""
        return sum(verdict.verified for verdict in self.controls), len(self.controls)

    def told(self) -> list[tuple[str, str]]:
        """How it was done and how far it is to be believed, as pairs."""
        lengths = ", ".join(f"{name} {length}" for name, length in self.lengths.items())
        everyone = (*self.candidates.values(), *self.controls)
        kept = sum(len(verdict.probabilities) for verdict in everyone) - self.num_asked
        asked = "every prompt" if self.every_prompt else "until a prompt gave 1 %: probabilities are lower bounds"
        failed, count = self.base_rate
        low, high = interval(failed, count)
        return [
            (
                "verification",
                f"{asked}; {self.precision} on {self.device}; {self.num_asked:,} asked in {self.seconds:.1f} s, "
                f"{kept:,} known from before",
            ),
            ("prompts", f"{lengths} tokens, tokenized with {shown(self.placeholder)!r}"),
            (
                "base rate",
                f"{failed} of {count} control tokens above both cuts are verified as well (95 % interval {low:.1%} to "
                f"{high:.1%})",
            ),
            *(("note", message) for message in (*self.messages, *self._doubt())),
        ]

    def _doubt(self) -> list[str]:
        failed, count = self.base_rate
        if failed <= MOST_FAILING * count:
            return []
        return [f"the model cannot repeat {failed} of {count} ordinary tokens either: that one is verified says little"]


def interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper and Pearson)."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    found = binomtest(hits, count).proportion_ci(method="exact")
    return float(found.low), float(found.high)
