"""What lm-evaluation-harness finds and leaves in our process: random numbers, output, the model."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch

# Of Python's, numpy's and torch's random numbers, and of the choice of examples.
Seeds = tuple[int, int, int, int]
HARNESS_SEEDS: Seeds = (0, 1234, 1234, 1234)  # Source: lm_eval/defaults.py, evaluator.simple_evaluate @ 0.4.13
# Of Python's, numpy's and torch's.
RandomStates = tuple[Any, Any, Any]


@contextmanager
def without_nan(model: torch.nn.Module) -> Iterator[None]:
    """The harness ranks NaN like any number; a model that computes it knows no answers.

    The last token of each row has seen all others.
    """

    def look(module: Any, inputs: Any, output: Any) -> None:
        if bool(output.logits[:, -1].isnan().any()):
            raise FloatingPointError("the model computes NaN: its weights are broken")

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def drawn_so_far() -> RandomStates:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


@contextmanager
def random_numbers(seeds: Seeds, drawn: RandomStates | None = None) -> Iterator[None]:
    """Global random numbers from these seeds, or from where they were left; afterwards as they were before."""
    before = drawn_so_far()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])
        if drawn is not None:
            _go_on(drawn)
        try:
            yield
        finally:
            _go_on(before)


def _go_on(drawn: RandomStates) -> None:
    random.setstate(drawn[0])
    np.random.set_state(drawn[1])
    torch.set_rng_state(drawn[2])


@contextmanager
def quiet() -> Iterator[None]:
    """The harness writes bars, advice and prints where our rows and progress go; only its errors are let through."""
    harness, errors, disabled = logging.getLogger("lm_eval"), logging.StreamHandler(sys.stderr), logging.root.manager
    errors.setLevel(logging.ERROR)
    level, before = disabled.disable, os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # else resampling forks this process, with its threads and its GPU
    harness.addHandler(errors)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        harness.removeHandler(errors)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
