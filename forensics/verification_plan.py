"""What `tokens --verify` would ask, hold in memory, fetch and take, before the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_index.workspace import Workspace
from forensics.kept_answers import KeptAnswers
from forensics.prompted_model import DTYPES, bytes_to_fetch, num_parameters
from forensics.token_prompting import prompting_of
from forensics.token_source import TokenSource
from forensics.token_verification import NUM_CONTROLS, Verifying, Work, controls_of, kept_at, tokens_to_ask
from forensics.undertrained_tokens import analysed


def plan_verification(
    source: TokenSource,
    workspace: Workspace,
    how: Verifying,
    *,
    indicator: str | None = None,
    unused: list[int] | None = None,
) -> dict[str, Any]:
    """
    Returns:
        Of a model on disk, whose embedding matrices are read for it, what exactly is left to ask; of one on a server,
        the published 2 % of the tokens that encode to themselves. With `--until-settled`, the most. `seconds` is
        estimated from a matmul of this device.
    Raises:
        UnsupportedRecipe: the place makes no model, or its tokenizer no prompts.
        MissingFile, MissingState, CorruptFile, UnsafeFile
    """
    import torch

    from data_index.token_categories import analyse_tokenizer
    from replay.causal_model import require_model
    from replay.determinism import choose_device
    from replay.device_speed import matmul_flops

    device = choose_device(how.device)
    if source.run is None:
        require_model(source.place)
    if isinstance(source.place, Path):
        found = analysed(source, indicator=indicator, unused=unused)
        prompting = prompting_of(source.tokenizer, found.analysis)
        asked, controls = tokens_to_ask(found), controls_of(found)
        answers = KeptAnswers(kept_at(workspace, source, prompting, how, device.type))
        work = Work(prompting, answers, how.every_prompt, np.array([*asked, *controls], dtype=np.int64))
        candidates, prompt_tokens = len(asked), work.num_left
    else:
        analysis = analyse_tokenizer(source.tokenizer, source.special_ids)
        prompting = prompting_of(source.tokenizer, analysis)
        candidates = round(0.02 * sum(token.encodes_to_itself for token in analysis.tokens))
        prompt_tokens = (candidates + NUM_CONTROLS) * sum(prompt.num_own for prompt in prompting.prompts)
    parameters, (rows, width) = num_parameters(source, workspace), source.embeddings.input.shape
    dtype = getattr(torch, DTYPES[how.precision])
    # The embedding is looked up; the output layer is computed for the last token only.
    flops = 2 * max(parameters - rows * width * (1 if source.embeddings.output is None else 2), 0)
    return {
        "model": source.label,
        "candidates": candidates,
        "controls": NUM_CONTROLS,
        "prompt_tokens": prompt_tokens,
        "parameters": parameters,
        "weight_bytes": parameters * dtype.itemsize,
        "bytes_to_fetch": bytes_to_fetch(source, workspace),
        "device": device.type,
        "seconds": flops * prompt_tokens / matmul_flops(width, device=device, dtype=dtype),
    }
