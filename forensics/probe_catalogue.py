"""The probes that have a name, and how each gets its data from a run.

A name may say which rows it is about: `loss@run`, `loss@my-texts.jsonl` (forensics/row_sources.py). `task:NAME` is a
task of lm-evaluation-harness, `module:function` a function of the user's.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_index.errors import ForensicsError, InvalidRange
from forensics.bound_probe import BoundProbe, Builder
from forensics.model_bindings import (
    attention,
    embedding_norms,
    function,
    generations,
    gradient_noise,
    induction,
    induction_heads,
    learning_coefficient,
    norms,
    spectra,
    task,
)
from forensics.prediction_bindings import (
    bigram_kl,
    bits_per_byte,
    calibration,
    extractability,
    loss,
    loss_by_frequency,
    loss_by_position,
    loss_by_tag,
    memorization,
    next_batch,
    predicting,
    unigram_kl,
)
from forensics.probe_data import ProbeData

TASK = "task:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """
    Attributes:
        what: it measures. needs: tensors, predictions, or the model; takes_rows: its name may have `@ROWS`.
        in_all: `all` means it too.
    """

    what: str
    needs: str
    build: Builder
    takes_rows: bool = False
    in_all: bool = True


def bound_probes(
    names: Sequence[str], data: ProbeData, tell: Callable[[str], None] = lambda message: None
) -> list[BoundProbe]:
    """Probes by name, each once, with their data.

    Args:
        names: `all` stands for all that need no file and no other package; those of them that the run has no data for
            are left out, and said.
    Raises:
        InvalidRange: no such name.
        MissingFile, CorruptFile, UnknownOrder, TooMuchToFetch, …: a probe that is named has no data.
    """
    found: dict[str, BoundProbe] = {}
    for name in names:
        if name == "all":
            for one in (one for one, described in PROBES.items() if described.in_all):
                try:
                    found.setdefault(one, bound_probe(one, data))
                except ForensicsError as error:
                    tell(f"{one} is left out: {error}")
        elif name not in found:
            found[name] = bound_probe(name, data)
    if not found:
        raise InvalidRange("no probe is left to be measured")
    return list(found.values())


def bound_probe(name: str, data: ProbeData) -> BoundProbe:
    """
    Raises:
        InvalidRange: no such name.
    """
    if name.startswith(TASK):
        return replace(task(data, name.removeprefix(TASK)), name=name)
    base, _, rows = name.partition("@")
    if ":" in base:
        return replace(function(data, base, rows or None), name=name)
    described = PROBES.get(base)
    if described is None:
        near = difflib.get_close_matches(base, PROBES, n=3)
        raise InvalidRange(
            f"no probe is called {base!r}; {'near: ' + ', '.join(near) if near else 'there are: ' + ', '.join(PROBES)} "
            "(forensics probes lists them; module:function names one of your own, task:NAME a benchmark)"
        )
    if rows and not described.takes_rows:
        raise InvalidRange(f"{base} looks at no rows of your choice: write {base} without @{rows}")
    bound = described.build(data, rows or None)
    return replace(bound, name=name, settings={"probe": base} | dict(bound.settings))


def _of_rows(what: str, make: Callable[..., Any]) -> Described:
    """A probe of the predictions of rows, which may be of the user's choice."""
    return Described(what=what, needs="predictions", build=predicting(make), takes_rows=True)


PROBES: Mapping[str, Described] = {
    "loss": _of_rows("mean cross-entropy", loss),
    "bits-per-byte": _of_rows("the same per UTF-8 byte of text, to compare tokenizers", bits_per_byte),
    "loss-by-tag": _of_rows("loss and bits per byte of each tag (domain)", loss_by_tag),
    "loss-by-position": _of_rows("loss by position in the row; in-context-learning score", loss_by_position),
    "loss-by-frequency": _of_rows("loss by how often the run's own data hold the token", loss_by_frequency),
    "unigram-kl": _of_rows("KL(unigrams of the run's data || model)", unigram_kl),
    "bigram-kl": _of_rows("KL(bigrams of the run's data || model)", bigram_kl),
    "calibration": _of_rows("calibration error, Brier score, accuracy of the next token", calibration),
    "next-batch": Described(
        what="loss on the batch that comes next, and on the one just read", needs="predictions", build=next_batch
    ),
    "memorization": Described(
        what="what reading a row did to its loss (all checkpoints kept)",
        needs="predictions",
        build=memorization,
    ),
    "extractability": Described(
        what="32 tokens continued word for word: rows read, and not yet",
        needs="the model",
        build=extractability,
    ),
    "induction": Described(
        what="loss on the second copy of random tokens less the first", needs="the model", build=induction
    ),
    "induction-heads": Described(
        what="attention to what came after the same token before",
        needs="the model",
        build=induction_heads,
    ),
    "attention": Described(
        what="entropy, attention to the first token, distance, by head",
        needs="the model",
        build=attention,
        takes_rows=True,
    ),
    "norms": Described(what="norm and root mean square of all weights, by part", needs="all tensors", build=norms),
    "embedding-norms": Described(
        what="how long the rows of the embeddings are", needs="embeddings", build=embedding_norms
    ),
    "spectra": Described(
        what="spectral norm, stable and effective rank, tail exponent",
        needs="matrices",
        build=spectra,
    ),
    "gradient-noise": Described(what="gradient-noise scale", needs="the model", build=gradient_noise, takes_rows=True),
    "learning-coefficient": Described(
        what="local learning coefficient (look at drift, --step-size)",
        needs="the model",
        build=learning_coefficient,
        takes_rows=True,
        in_all=False,
    ),
    "generations": Described(
        what="what is written after prompts: generations@FILE, one a line",
        needs="the model",
        build=generations,
        takes_rows=True,
        in_all=False,
    ),
}


def described_probes() -> list[dict[str, Any]]:
    """Rows of `forensics probes`."""
    named = [
        {"name": name + ("[@ROWS]" if one.takes_rows else ""), "measures": one.what, "needs": one.needs}
        for name, one in PROBES.items()
    ]
    return [
        *named,
        {
            "name": "task:NAME|FILE.yaml",
            "measures": "a benchmark of lm-evaluation-harness (extra eval)",
            "needs": "the model",
        },
        {
            "name": "module:function[@ROWS]",
            "measures": "your function(model, token_ids): numbers by name, or one",
            "needs": "the model",
        },
    ]


def unmeasured_probes(run: str, measured: Iterable[str]) -> list[dict[str, Any]]:
    """Probes that have a name and of which a run has no number yet, each with the command that measures it.

    Args:
        measured: names of those of which it has one; `loss@my-texts.jsonl` counts as loss.
    """
    there = {name.partition("@")[0] for name in measured}
    return [
        {
            "probe": name,
            "measures": one.what,
            "needs": one.needs,
            "command": shlex.join(["forensics", "probe", run, name]),
        }
        for name, one in PROBES.items()
        if name not in there
    ]
