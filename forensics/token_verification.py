"""`tokens --verify`: ask the model to repeat its candidates, and as many tokens that nothing is held against.

Every answer is kept, under a key of all that it depends on (weights, prompts, precision, kind of device), so that an
interrupted verification goes on, and a second one is answered at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import InvalidRange, UnsupportedRecipe
from data_index.files import canonical_json, exclusive_lock
from data_index.workspace import Workspace
from forensics.fetching import require_allowed
from forensics.kept_answers import KeptAnswers
from forensics.place_identity import identity_of_place
from forensics.prompted_model import bytes_to_fetch, device_memory, prompted_model
from forensics.token_answer import Row, UndertrainedTokens
from forensics.token_prompting import Prompting, prompting_of
from forensics.token_source import TokenSource
from forensics.token_verdicts import Verdict, Verification

NUM_CONTROLS = 64
# Prompt tokens that are computed together, and rows at most; on a GPU rows are halved until they fit.
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 32_768}
MOST_ROWS = 256
SAVE_SECONDS = 30.0
PRECISIONS = ("fp32", "bf16")

# Prompt tokens computed by this call, and all that are to be.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """How to verify.

    Attributes:
        every_prompt: False: ask no further prompt about a token that one gave 1 %. Which tokens are verified stays the
            same.
        device: `auto`, `cpu` or `cuda`. precision: `fp32` or `bf16`.
        max_fetch: bytes of weights that may be fetched from servers; default: 1 GiB.
    """

    every_prompt: bool = True
    device: str = "auto"
    precision: str = "fp32"
    max_fetch: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidRange(f"--precision is one of {', '.join(PRECISIONS)} here, not {self.precision!r}")


def verified(
    found: UndertrainedTokens,
    source: TokenSource,
    workspace: Workspace,
    how: Verifying,
    progress: Progress = lambda done, total: None,
) -> UndertrainedTokens:
    """The answer, with what prompting the model gave in its rows.

    Raises:
        UnsupportedRecipe: the place makes no model, or its tokenizer no prompts.
        MissingFile, MissingState, CorruptFile, UnsafeFile, TooMuchToFetch, OutOfMemory
        Busy: another process verifies the same.
    """
    from replay.determinism import choose_device

    device = choose_device(how.device)
    prompting = prompting_of(source.tokenizer, found.analysis)
    asked, controls = tokens_to_ask(found), controls_of(found)
    path = kept_at(workspace, source, prompting, how, device.type)
    with exclusive_lock(path.with_suffix(".lock"), f"verifying the tokens of {source.label}"):
        work = Work(prompting, KeptAnswers(path), how.every_prompt, np.array([*asked, *controls], dtype=np.int64))
        began = time.monotonic()
        if work.num_left:
            require_allowed(bytes_to_fetch(source, workspace), how.max_fetch, f"the weights of {source.label}")
            with device_memory(source, how.precision):
                model = prompted_model(source, workspace, device, how.precision)
                work.answers.notes = _checked(model, prompting)
                work.ask(model, TOKENS_AT_ONCE[device.type], progress)
    verdicts = work.verdicts()
    return found.with_verification(
        Verification(
            candidates={token: verdicts[token] for token in asked},
            controls=tuple(verdicts[token] for token in controls),
            placeholder=prompting.placeholder,
            lengths={prompt.name: len(prompt.token_ids) for prompt in prompting.prompts},
            every_prompt=how.every_prompt,
            precision=how.precision,
            device=device.type,
            num_asked=work.num_asked,
            seconds=time.monotonic() - began,
            messages=work.answers.notes,
        )
    )


def tokens_to_ask(found: UndertrainedTokens) -> list[int]:
    """Candidates, by either cut too, lowest first."""
    return [row["token_id"] for row in found.rows if row["rank"] and _is_suspicious(row)]


def controls_of(found: UndertrainedTokens, count: int = NUM_CONTROLS) -> list[int]:
    """Tokens of the category `ok` above both cuts, evenly spaced in rank."""
    others = [
        row["token_id"] for row in found.rows if row["rank"] and row["category"] == "ok" and not _is_suspicious(row)
    ]
    places = np.unique(np.linspace(0, len(others) - 1, min(count, len(others))).astype(int))
    return [others[place] for place in places]


def _is_suspicious(row: Row) -> bool:
    return bool(row["candidate"] or row["below_gap"] or row["below_2_percent"])


# --- asking ----------------------------------------------------------------------------------------------------------


class Work:
    """What is asked, and what was answered.

    Attributes:
        num_asked: pairs of token and prompt that were asked here.
    """

    def __init__(self, prompting: Prompting, answers: KeptAnswers, every_prompt: bool, tokens: np.ndarray) -> None:
        self.prompting, self.answers, self.every_prompt, self.tokens = prompting, answers, every_prompt, tokens
        self.num_asked = 0

    @property
    def num_left(self) -> int:
        """Prompt tokens that are still to be computed, as far as can be told now."""
        return sum(len(self._left(prompt)) * prompt.num_own for prompt in self.prompting.prompts)

    def _left(self, prompt: Any) -> np.ndarray:
        kept = self.answers.answers
        left = [t for t in self.tokens.tolist() if (prompt.name, t) not in kept and not self._is_settled(t)]
        return np.array(left, dtype=np.int64)

    def _is_settled(self, token: int) -> bool:
        from probes.token_repetition import VERIFIED_BELOW

        return not self.every_prompt and max(self._chances(token).values(), default=0.0) >= VERIFIED_BELOW

    def _chances(self, token: int) -> dict[str, float]:
        kept = self.answers.answers
        names = [prompt.name for prompt in self.prompting.prompts if (prompt.name, token) in kept]
        return {name: float(kept[name, token][0].max()) for name in names}

    def ask(self, model: Any, tokens_at_once: int, progress: Progress) -> None:
        """Ask what is left; whatever ends it, what was answered is kept."""
        from probes.token_repetition import repetition_probabilities

        saved, done = time.monotonic(), 0
        try:
            for prompt in self.prompting.prompts:
                tokens = self._left(prompt)
                rows = max(min(tokens_at_once // prompt.num_own, MOST_ROWS), 1)
                for chances, generated in repetition_probabilities(model, prompt, tokens, rows_at_once=rows):
                    self.answers.add(prompt.name, tokens[: len(chances)], chances, generated)
                    tokens = tokens[len(chances) :]
                    self.num_asked += len(chances)
                    done += len(chances) * prompt.num_own
                    progress(done, done + self.num_left)
                    if time.monotonic() - saved >= SAVE_SECONDS:
                        self.answers.save()
                        saved = time.monotonic()
        finally:
            if self.num_asked:
                self.answers.save()

    def verdicts(self) -> dict[int, Verdict]:
        from probes.token_repetition import VERIFIED_BELOW, label_of

        found, kept = {}, self.answers.answers
        dearest_first = [prompt.name for prompt in reversed(self.prompting.prompts)]
        ids = self.tokens.tolist()
        for token, encodeable in zip(ids, self.prompting.encodeable(ids), strict=True):
            chances = self._chances(token)
            highest = max(chances.values())
            # Beyond 0.9, and where every prompt was asked, nothing could change the label.
            sure = highest > 0.9 or len(chances) == len(dearest_first)
            spoken = next(name for name in dearest_first if name in chances)
            found[token] = Verdict(
                token_id=token,
                probabilities=chances,
                max_probability=highest,
                verified=highest < VERIFIED_BELOW,
                label=label_of(highest, encodeable=encodeable) if sure else None,
                said=self.prompting.text_of(kept[spoken, token][1]),
            )
        return found


def _checked(model: Any, prompting: Prompting) -> tuple[str, ...]:
    """Can the model take prompts of this length?

    Returns:
        Why its answers may tell little.
    Raises:
        UnsupportedRecipe
    """
    longest = max(len(prompt.token_ids) for prompt in prompting.prompts) + 2
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or longest <= most:
        return ()
    if getattr(model.config, "rope_parameters", None) is None:
        raise UnsupportedRecipe(f"a prompt has {longest} tokens, and the model places for {most}")
    return (
        f"the longest prompt has {longest} tokens, and the model was trained on {most}: it may fail for that alone",
    )


def kept_at(workspace: Workspace, source: TokenSource, prompting: Prompting, how: Verifying, device: str) -> Path:
    depends_on = {
        "weights": identity_of_place(source.place),
        "prompts": [[prompt.name, prompt.token_ids.tolist()] for prompt in prompting.prompts],
        "precision": how.precision,
        "device": device,
    }
    home = workspace.folder if source.run is None else workspace.home(source.run)
    key = hashlib.sha256(canonical_json(depends_on)).hexdigest()[:16]
    return home / "verifications" / f"{key}.parquet"
