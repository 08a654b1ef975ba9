"""Names of probes and metrics as a user writes them: what they mean, and what is said where there is nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from data_index.errors import MissingMetric

NAMED_IN_MESSAGES = 8
MOST_METRICS = 8  # of a probe that are shown, where none is named
MOST_IN_ALL = 24
# Metrics of one layer, head, row or prompt of many: "sink mass, layer 3 head 1", "stable rank, model.layers.3.mlp".
_OF_ONE_PART = re.compile(r"\b(layers?|heads?|rows?|prompts?)[ ._]?\d", re.IGNORECASE)


def chosen_probes(runs: Sequence[str], patterns: Sequence[str], there: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of probes in the order in which they were asked for.

    Args:
        there: run -> the probes of which it has values.
    Raises:
        MissingMetric: no run has one of them.
    """
    known = sorted({name for names in there.values() for name in names})
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = _matching(pattern, known)
        if not found:
            raise nothing_of(runs, pattern, known)
        chosen |= dict.fromkeys(found)
    return list(chosen)


def chosen_metrics(patterns: Sequence[str], known: Iterable[str], probes: Sequence[str]) -> set[str]:
    """
    Raises:
        MissingMetric: there is none of one of them.
    """
    known = sorted(set(known), key=natural_order)
    chosen: set[str] = set()
    for pattern in patterns:
        found = _matching(pattern, known)
        if not found:
            raise MissingMetric(f"no metric of {', '.join(probes)} is called {pattern!r}; {_near(pattern, known)}")
        chosen.update(found)
    return chosen


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The name itself, or all that a pattern with * and ? fits."""
    if pattern in names or not any(char in pattern for char in "*?"):
        return [pattern] if pattern in names else []
    return [name for name in names if fnmatchcase(name, pattern.replace("[", "[[]"))]


def nothing_of(
    runs: Sequence[str], probe: str, there: Sequence[str], kind: str = "measured or published"
) -> MissingMetric:
    """The error that says what there is instead, and how values come about."""
    said = f"nothing was {kind} of {probe!r} at the checkpoints of {' and '.join(runs)}"
    if there:
        said += f"; {_near(probe, there)}"
    run = runs[0] if len(runs) == 1 else "RUN"
    name = "NAME" if any(char in probe for char in "*?") else probe
    return MissingMetric(
        f"{said} (forensics probe {run} {name} measures it, forensics import {run} FILES takes in published "
        "evaluations)"
    )


def _near(name: str, there: Sequence[str]) -> str:
    """What there is that is nearest to a name, or the first of all there is."""
    near = get_close_matches(name, there, n=3) or [other for other in there if name.lower() in other.lower()][:3]
    shown = near or there[:NAMED_IN_MESSAGES]
    more = len(there) - len(shown)
    return f"there {'is' if len(there) == 1 else 'are'} {', '.join(shown)}" + (f" and {more:,} more" if more else "")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def shown_metrics(
    metrics: Mapping[str, Sequence[str]], most: int | None, messages: list[str]
) -> frozenset[tuple[str, str]]:
    """(probe, metric) of those that a picture has room for, first those that are not of one layer, head or row.

    Args:
        metrics: probe -> its metrics, in order.
        most: of one probe; None: they were asked for by name.
    """
    shown: list[tuple[int, str, str]] = []
    for probe, names in metrics.items():
        chosen = sorted(names, key=lambda name: bool(_OF_ONE_PART.search(name)))[:most]
        shown += [(rank, probe, metric) for rank, metric in enumerate(chosen)]
        if len(chosen) < len(names):
            messages.append(
                f"{probe}: {len(chosen)} of {len(names):,} metrics are shown and drawn, {len(names) - len(chosen):,} "
                "are not; --metric NAME chooses others (with * for any text), --format json or csv prints all"
            )
    if len(shown) > MOST_IN_ALL:
        messages.append(
            f"{MOST_IN_ALL} of {len(shown):,} metrics are shown and drawn, the first ones of each probe; --format json "
            "or csv prints all"
        )
    return frozenset((probe, metric) for _, probe, metric in sorted(shown, key=lambda one: one[0])[:MOST_IN_ALL])
