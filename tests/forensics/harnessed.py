"""A tiny model as transformers saves it, with its tokenizer, and a folder of tasks of each kind with their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.probes.tiny_models import tiny_model

WORDS = "the a red blue green cat dog fox sees likes eats one two three fish bird and".split()
VOCABULARY = 61

CHOICES = """\
task: which_word
dataset_path: json
dataset_kwargs:
  data_files: {test: choices.jsonl, train: data/examples.jsonl}
test_split: test
training_split: train
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1.0}
"""
LAST = """\
include: common.yaml
task: last_word
output_type: loglikelihood
process_docs: !function words.without_last
doc_to_text: "{{context}}"
doc_to_target: " {{last}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
ROLLING = """\
include: common.yaml
task: whole_text
dataset_kwargs: {data_files: {test: "t?xts.jsonl"}}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """\
include: common.yaml
task: next_words
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text[0]}}"
generation_kwargs: {until: ["cat"], max_gen_toks: 6, do_sample: false}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]}
  - {name: all, filter: [{function: take_first}]}
metric_list: [{metric: exact_match, ignore_case: true}, {metric: bleu}]
"""
COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
"""
DRAWN = """\
include: common.yaml
task: drawn_word
output_type: loglikelihood
process_docs: !function words.with_a_word
doc_to_text: "{{text}}"
doc_to_target: " {{word}}"
metric_list: [{metric: perplexity}]
"""
GROUP = """\
group: all_words
task: [which_word, last_word]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
FUNCTION = """\
import random

import numpy as np
import torch


def without_last(dataset):
    def cut(document):
        context, _, last = document["text"].rpartition(" ")
        return {"context": context, "last": last}
    return dataset.map(cut)


def with_a_word(dataset):
    words = "cat dog fox the eats bird".split()
    draws = [random.random, np.random.rand, lambda: float(torch.rand(1))]
    return dataset.add_column("word", [words[int(draws[n % 3]() * 6)] for n in range(len(dataset))])
"""
FILES = {
    "which_word.yaml": CHOICES,
    "last_word.yaml": LAST,
    "whole_text.yaml": ROLLING,
    "next_words.yaml": WRITTEN,
    "common.yaml": COMMON,
    "drawn_word.yaml": DRAWN,
    "all_words.yaml": GROUP,
    "words.py": FUNCTION,
}


def write_tasks(folder: Path) -> Path:
    draws = np.random.default_rng(5)

    def text(num_words: int) -> str:
        return " ".join(draws.choice(WORDS, num_words))

    def question() -> dict[str, Any]:
        choices = [text(1 + int(n)) for n in draws.integers(0, 3, 3)]
        return {"context": text(5), "choices": choices, "label": int(draws.integers(3))}

    (folder / "data").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    write_lines(folder / "choices.jsonl", [question() for _ in range(24)])
    write_lines(folder / "data" / "examples.jsonl", [question() for _ in range(9)])
    write_lines(folder / "texts.jsonl", [{"text": text(int(n))} for n in draws.integers(3, 30, 40)])
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path) -> Path:
    """Token 0 ends a text. It learned the words, so that its answers are neither all right nor all wrong."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    assert tokenizer.get_vocab_size() <= VOCABULARY
    model = tiny_model("llama")
    draws = np.random.default_rng(6)
    words = tokenizer.encode(" ".join(draws.choice(WORDS, 4000))).ids
    rows = torch.tensor(words[: len(words) // 24 * 24]).reshape(-1, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        batch = rows[step * 16 % 256 :][:16]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder
