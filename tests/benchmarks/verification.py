"""What verification costs: many tokens at once against token by token, as the published code asks them.

    python -m tests.benchmarks.verification MODEL [WORKSPACE]

MODEL is whatever `forensics tokens` takes. A sample of its candidates is asked in one process, in turns: by
transformers' `generate`, each token and prompt alone; all prompts at once; and no further than until a prompt gave 1 %.
Figures are seconds a token. The verified tokens must be the same in all three.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_index.workspace import Workspace
from forensics.kept_answers import KeptAnswers
from forensics.prompted_model import prompted_model
from forensics.token_prompting import Prompting, prompting_of
from forensics.token_source import token_source
from forensics.token_verification import TOKENS_AT_ONCE, Work, tokens_to_ask
from forensics.undertrained_tokens import analysed
from replay.determinism import choose_device

SAMPLE, ALONE, ROUNDS = 48, 6, 3


def one_by_one(model: Any, prompting: Prompting, tokens: np.ndarray) -> dict[int, float]:
    found = {}
    for token in tokens.tolist():
        highest = 0.0
        for prompt in prompting.prompts:
            ids = torch.from_numpy(prompt.for_tokens(np.array([token]))).to(model.device)
            answer = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=3,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
            highest = max(highest, *(float(logits.softmax(dim=-1)[0, token]) for logits in answer.logits))
        found[token] = highest
    return found


def at_once(model: Any, prompting: Prompting, tokens: np.ndarray, every_prompt: bool) -> dict[int, float]:
    work = Work(prompting, Unkept(Path("nowhere")), every_prompt, tokens)
    work.ask(model, TOKENS_AT_ONCE[model.device.type], lambda done, total: None)
    return {token: verdict.max_probability for token, verdict in work.verdicts().items()}


class Unkept(KeptAnswers):
    def save(self) -> None:
        pass


def timed(do: Callable[[], dict[int, float]]) -> tuple[float, dict[int, float]]:
    began = time.perf_counter()
    found = do()
    return (time.perf_counter() - began) / len(found), found


def main() -> None:
    workspace = Workspace(Path(sys.argv[2])) if len(sys.argv) > 2 else Workspace()
    source = token_source(sys.argv[1], workspace)
    found = analysed(source)
    prompting, asked = prompting_of(source.tokenizer, found.analysis), tokens_to_ask(found)
    sample = np.array(asked)[np.unique(np.linspace(0, len(asked) - 1, SAMPLE).astype(int))]
    few = sample[:: max(len(sample) // ALONE, 1)]
    model = prompted_model(source, workspace, choose_device("auto"), "fp32")
    lengths = ", ".join(f"{prompt.name} {len(prompt.token_ids)}" for prompt in prompting.prompts)
    print(f"{source.label}: {len(asked)} candidates; prompts: {lengths} tokens")
    print(f"{model.device.type}, {torch.get_num_threads()} thread(s)")
    for _ in range(ROUNDS):
        alone, by_one = timed(lambda: one_by_one(model, prompting, few))
        whole, every = timed(lambda: at_once(model, prompting, sample, True))
        settled, enough = timed(lambda: at_once(model, prompting, sample, False))
        assert all(abs(by_one[token] - every[token]) < 1e-3 for token in by_one)
        assert [every[t] < 0.01 for t in every] == [enough[t] < 0.01 for t in every]
        verified = sum(chance < 0.01 for chance in every.values())
        print(f"one by one {alone:.3f} s a token; {verified} of {len(every)} verified")
        print(f"  at once {whole:.3f} s, {alone / whole:.1f} times as fast")
        print(f"  until settled {settled:.3f} s, {alone / settled:.1f} times as fast")


if __name__ == "__main__":
    main()
