"""Published evaluations: result files of lm-eval, one a checkpoint, and whole trajectories in one file.

    <size>_step<N>.json    {"results": {task: {metric: value, metric_stderr: …}}, "versions": …, "config": …}
    *_agg.json             {"checkpoints": […], "results": {task: {metric: […], metric_stderr: […]}}}

The step of a result file is in its name, or in the revision that its config names; where both are there, they must
agree. Since 0.4 lm-eval writes a metric's filter behind it (`acc,none`); a filter that is one stays part of the name.
It then states the examples in the prompt by task (`n-shot`), and how many instances there were (`sample_len`).

Source: EleutherAI/pythia evals/ @ a19eecb; bigscience evaluation/results/ @ 9e64ede
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, ForensicsError, MissingFile
from data_index.files import read_json_object

_STEP = re.compile(r"(?:^|[^a-z])(?:global_)?step[_-]?(\d{1,18})(?!\d)", re.IGNORECASE)
_REVISION = re.compile(r"revision=([^,\s]+)")
_STDERR = "_stderr"
# lm-eval's metrics that are means of what is right or wrong, or shares of tokens, by the beginning of their names.
_SHARES = re.compile(r"(acc|em|exact|f1|mc[12]|pct|pass@\d+|HasAns|NoAns|best)(_|\b)")
_UNITS = {
    "ppl": "perplexity",
    "perplexity": "perplexity",
    "word_perplexity": "perplexity per word",
    "byte_perplexity": "perplexity per byte",
    "bits_per_byte": "bits per byte",
    "likelihood_difference": "nats",
    "likelihood_diff": "nats",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One number that a publisher measured on a checkpoint.

    Attributes:
        stderr: its standard error over the task's instances; None: not stated.
        num_fewshot: examples in the prompt.
        source: the file's name.
    """

    step: int
    task: str
    metric: str
    value: float
    stderr: float | None
    num_fewshot: int
    source: str

    @property
    def unit(self) -> str:
        return unit_of_metric(self.metric, self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """What files say, and what is wrong with some of them: pairs of a file's name and a reason."""

    rows: tuple[Evaluation, ...]
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def steps(self) -> list[int]:
        return sorted({row.step for row in self.rows})


def unit_of_metric(metric: str, task: str = "") -> str:
    """The unit of a metric of lm-eval; empty where its name does not tell.

    SQuAD's own script, which its tasks call, gives percent where other tasks give shares.

    Args:
        metric: as a result file names it; a filter or a number of shots may follow behind a comma.
    Source: EleutherAI/lm-evaluation-harness lm_eval/tasks/squadv2/task.py
    """
    name = metric.partition(",")[0]
    if _SHARES.match(name):
        return "percent" if "squad" in task.lower() else "share"
    return _UNITS.get(name, "")


def read_evaluations(*places: Path) -> Evaluations:
    """All result files of folders and their folders, and files.

    Raises:
        MissingFile: no such folder, or no JSON file in it.
        CorruptFile: no file in it holds evaluations.
    """
    paths = [path for place in places for path in _result_files(place)]
    rows: list[Evaluation] = []
    problems: list[tuple[str, str]] = []
    said: dict[tuple[int, int, str, str], Evaluation] = {}
    for path in paths:
        try:
            found = read_result_file(path)
        except ForensicsError as error:
            problems.append((path.name, str(error)))
            continue
        first = [said.setdefault((row.step, row.num_fewshot, row.task, row.metric), row) for row in found]
        other = [(row, earlier) for row, earlier in zip(found, first, strict=True) if not _same(row, earlier)]
        rows += [row for row, earlier in zip(found, first, strict=True) if row is earlier]
        if other:
            row, earlier = other[0]
            problems.append(
                (
                    path.name,
                    f"{path} says {row.value:.6g} of {row.task} {row.metric} at step {row.step}, {earlier.source} "
                    f"{earlier.value:.6g}: are they of one run? The first that was read counts",
                )
            )
    if not rows:
        raise CorruptFile(f"{places[0]}: no file holds evaluations of a step; the first says: {problems[0][1]}")
    return Evaluations(rows=tuple(rows), problems=tuple(problems))


def _result_files(place: Path) -> list[Path]:
    """
    Raises:
        MissingFile
    """
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*.json") if path.is_file())
    else:
        paths = [place] if place.is_file() else []
    if not paths:
        raise MissingFile(f"{place} holds no .json file of evaluations")
    return paths


def read_result_file(path: Path) -> list[Evaluation]:
    """
    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it is no result file, names no step, or names two.
    """
    content = read_json_object(path)
    results = content.get("results")
    if not isinstance(results, Mapping) or not all(isinstance(metrics, Mapping) for metrics in results.values()):
        raise CorruptFile(f"{path} holds no results by task and metric")
    config, shots = content.get("config"), content.get("n-shot")
    of_all = _count(config.get("num_fewshot")) if isinstance(config, Mapping) else 0
    of_tasks = {task: _count(count) for task, count in shots.items()} if isinstance(shots, Mapping) else {}
    if isinstance(content.get("checkpoints"), list):
        steps = content["checkpoints"]
        if not all(isinstance(step, int) and not isinstance(step, bool) for step in steps):
            raise CorruptFile(f"{path} lists checkpoints that are no steps")
        found = _trajectories(path, results, steps)
    else:
        found = ((_step_of(path, config), *one) for one in _numbers(results))
    return [
        Evaluation(
            step=step,
            task=task,
            metric=metric,
            value=value,
            stderr=stderr,
            num_fewshot=of_tasks.get(task, of_all),
            source=path.name,
        )
        for step, task, metric, value, stderr in found
    ]


def read_tokens(path: Path) -> list[tuple[int, float]]:
    """(step, tokens trained on) of each checkpoint, where a file of whole trajectories states them."""
    content = read_json_object(path)
    steps, tokens = content.get("checkpoints"), content.get("tokens")
    if not isinstance(steps, list) or not isinstance(tokens, list) or len(steps) != len(tokens):
        return []
    return [(step, float(count)) for step, count in zip(steps, tokens, strict=True) if _is_number(count)]


def _step_of(path: Path, config: Any) -> int:
    named = _STEP.findall(path.stem)
    arguments = config.get("model_args") if isinstance(config, Mapping) else None
    if isinstance(arguments, Mapping):
        revision = str(arguments.get("revision", ""))
    else:
        match = _REVISION.search(arguments) if isinstance(arguments, str) else None
        revision = match[1] if match else ""
    revised = _STEP.findall(revision)
    if not named and not revised:
        raise CorruptFile(
            f"{path} names no step: neither in its name (…_step1000.json) nor as a revision in its config"
        )
    if named and revised and int(named[-1]) != int(revised[-1]):
        raise CorruptFile(
            f"{path} is named for step {int(named[-1])}, and its config says that revision {revision} was measured: "
            "one of them is wrong, so the file is left out"
        )
    return int((named or revised)[-1])


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """(task, metric, value, standard error) of all numbers that are no standard errors themselves."""
    for task, metrics in results.items():
        plain = {name: float(value) for name, value in metrics.items() if _is_number(value)}
        for name, value in plain.items():
            metric, comma, filter = name.partition(",")
            if not metric.endswith(_STDERR) and metric != "sample_len":
                stderr = plain.get(f"{metric}{_STDERR}{comma}{filter}", math.nan)
                called = metric if filter in ("", "none") else name
                yield task, called, value, stderr if math.isfinite(stderr) else None


def _trajectories(
    path: Path, results: Mapping[str, Any], steps: list[int]
) -> Iterator[tuple[int, str, str, float, float | None]]:
    for task, metrics in results.items():
        for name, values in metrics.items():
            if not isinstance(values, list) or len(values) != len(steps):
                raise CorruptFile(f"{path}: {task} {name} is no list of {len(steps)} numbers, one for each checkpoint")
        for number, step in enumerate(steps):
            one = {task: {name: values[number] for name, values in metrics.items()}}
            yield from ((step, *row) for row in _numbers(one))


def _same(one: Evaluation, other: Evaluation) -> bool:
    return one.value == other.value or math.isnan(one.value) and math.isnan(other.value)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1024  # what a float holds
    return isinstance(value, float)
