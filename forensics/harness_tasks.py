"""Benchmark tasks through lm-evaluation-harness (the extra `eval`), as probes.

A task is a name that the installed harness knows, or a task file in its YAML, with data files beside it. **A task file
is a program**: its templates are run, and its `!function` lines name Python code that is imported. Name only task files
you trust.

The numbers are the harness's own, named and with intervals as published evaluations are in the view `probes`: `acc`;
`exact_match,strict-match` with a filter; `acc, 5-shot` with examples in the prompt. A group gives the means that it
defines under these names, and those of its tasks as `TASK acc`; a tag gives only the latter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_index.errors import CorruptFile, FailedFunction, MissingFile, UnusableTask
from data_index.evaluations import unit_of_metric
from data_index.files import canonical_json, sha256_of_file
from forensics.harness_files import hashes_of_task, read_task_file
from forensics.harness_loading import LoadedTasks, harness_version, load_tasks
from forensics.harness_surroundings import HARNESS_SEEDS, Seeds, quiet, random_numbers, without_nan
from probes.evaluation_mode import evaluation_mode
from probes.probe import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """A probe for models. It holds names and paths only, so that it can be sent to other processes.

    Attributes:
        task: a task, group or tag of the harness, or the path of a task file (`.yaml`).
        tokenizer_file: a `tokenizer.json`. What a `tokenizer_config.json` may add to it is not looked at.
        eos_token_id, bos_token_id: texts without a prompt are scored behind the second, else behind the first.
        num_fewshot: examples in the prompt; None: as the task says, else 0.
        limit: only so many instances of each task, below 1 that share; None: all.
        batch_size: changes no more than the rounding of the numbers.
        seed: of everything that is drawn; None: the harness's own seeds.
        bootstrap_iters: resamples behind the intervals of numbers that have no formula for one.
    """

    task: str
    tokenizer_file: Path
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    num_fewshot: int | None = None
    limit: int | float | None = None
    batch_size: int = 1
    seed: int | None = None
    bootstrap_iters: int = 1000

    def __post_init__(self) -> None:
        if Path(self.task).suffix == ".yaml":
            object.__setattr__(self, "task", str(Path(self.task).resolve()))  # other processes have other folders
        object.__setattr__(self, "tokenizer_file", Path(self.tokenizer_file).resolve())

    @property
    def file(self) -> Path | None:
        return Path(self.task) if Path(self.task).suffix == ".yaml" else None

    @property
    def name(self) -> str:
        """As the harness calls it.

        Raises:
            MissingFile, UnusableTask
        """
        return self.task if self.file is None else read_task_file(self.file).name

    def prepared(self) -> HarnessTask:
        """Itself, if everything but a model is there; a dataset that is not kept here yet is fetched.

        Raises:
            MissingPackage: the harness, or what a task of it needs, is not installed.
            UnknownTask, UnusableTask
            MissingFile, CorruptFile: of the task or the tokenizer.
            Unreachable, Offline, AccessDenied: the dataset cannot be had.
        """
        self._ready()
        return self

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on besides the model, as JSON; data of a server are known by the harness's version.

        Raises:
            MissingPackage, MissingFile, UnusableTask
        """
        return {
            "lm-eval": harness_version(),
            "task": self.name,
            "files": None if self.file is None else hashes_of_task(self.file),
            "tokenizer": sha256_of_file(self.tokenizer_file),
            "tokens": [self.bos_token_id, self.eos_token_id, self.pad_token_id],
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "seed": self.seed,
            "bootstrap_iters": self.bootstrap_iters,
        }

    def measure_model(self, model: Any) -> list[Measurement]:
        """
        Raises:
            FailedFunction: the harness, or code of the task, fails on this model.
            FloatingPointError: the model computes NaN.
            torch.OutOfMemoryError
            Otherwise as for `prepared`.
        """
        loaded = self._ready()
        try:
            with evaluation_mode(model), without_nan(model), random_numbers(self._seeds, loaded.drawn), quiet():
                answer = self._answer(model, loaded)
        except (torch.OutOfMemoryError, FloatingPointError):
            raise
        except Exception as error:  # code of the task's author
            raise FailedFunction(f"{self.name} failed: {error!r:.500}") from error
        return _measurements(answer["results"], answer["n-shot"], loaded.main)

    def _answer(self, model: Any, loaded: LoadedTasks) -> Mapping[str, Any]:
        """What `simple_evaluate` does, but for asking git, pip and the hub about the machine, which takes longer."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in loaded.tasks["tasks"].values():
            task.set_fewshot_seed(seed=self._seeds[3])
        harnessed = HFLM(pretrained=model, tokenizer=self._tokenizer(), batch_size=self.batch_size)
        return evaluate(
            harnessed,
            loaded.tasks,
            limit=self.limit,
            bootstrap_iters=self.bootstrap_iters,
            log_samples=False,
        )

    @property
    def _seeds(self) -> Seeds:
        return HARNESS_SEEDS if self.seed is None else (self.seed,) * 4

    def _ready(self) -> LoadedTasks:
        files = {} if self.file is None else hashes_of_task(self.file)
        loaded = load_tasks(self.task, canonical_json(files), self.num_fewshot, self._seeds)
        self._tokenizer()
        for name, task in loaded.tasks["tasks"].items():
            self._require_usable(name, task)
        return loaded

    def _tokenizer(self) -> Any:
        """
        Raises:
            MissingFile
            CorruptFile: it is no tokenizer, or lacks a token.
        """
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        if not self.tokenizer_file.is_file():
            raise MissingFile(f"there is no tokenizer {self.tokenizer_file}")
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        except Exception as error:  # the library raises nothing narrower
            raise CorruptFile(f"{self.tokenizer_file} is no tokenizer.json: {error}") from error
        named = {"eos_token": self.eos_token_id, "bos_token": self.bos_token_id, "pad_token": self.pad_token_id}
        tokens = {name: tokenizer.id_to_token(number) for name, number in named.items() if number is not None}
        if None in tokens.values():
            raise CorruptFile(f"{self.tokenizer_file} has no token for one of {named}")
        return PreTrainedTokenizerFast(tokenizer_file=str(self.tokenizer_file), **tokens)

    def _require_usable(self, name: str, task: Any) -> None:
        """
        Raises:
            UnusableTask
        """
        says = task.get_config("num_fewshot")
        if self.num_fewshot is not None and says != self.num_fewshot:
            raise UnusableTask(f"{name} is measured with {says} examples, whatever is asked: leave out num_fewshot")
        if getattr(task, "UNSAFE_CODE", False):
            raise UnusableTask(f"{name} runs code that the model writes, which is not done here")
        if getattr(task, "MULTIMODAL", False):
            raise UnusableTask(f"{name} is about pictures or sounds, and the model reads tokens")
        if self.eos_token_id is None and (self.bos_token_id is None or task.OUTPUT_TYPE == "generate_until"):
            raise UnusableTask(f"{name} needs to know the token that ends a text (eos_token_id), which is not known")


def _measurements(
    results: Mapping[str, Mapping[str, Any]], shots: Mapping[str, Any], main: str | None
) -> list[Measurement]:
    found = []
    for task, numbers in results.items():
        num_shots = shots.get(task)
        behind = f", {num_shots}-shot" if isinstance(num_shots, int) and num_shots > 0 else ""
        before = "" if task == main else f"{task} "
        for key, value in numbers.items():
            metric, comma, filter = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float | np.number):
                stderr = numbers.get(f"{metric}_stderr,{filter}")
                called = metric if filter == "none" else key
                found.append(_measured(f"{before}{called}{behind}", float(value), stderr, unit_of_metric(metric)))
    return found


def _measured(metric: str, value: float, stderr: Any, unit: str) -> Measurement:
    if not isinstance(stderr, int | float | np.number) or not math.isfinite(stderr):
        return Measurement(metric=metric, value=value, unit=unit)
    reach = 1.96 * float(stderr)
    return Measurement(metric=metric, value=value, unit=unit, low=value - reach, high=value + reach)
