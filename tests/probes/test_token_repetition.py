"""The published prompts, and that asking many tokens at once gives what asking one by one gives."""

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from probes.token_repetition import (
    RepetitionPrompt,
    find_placeholder,
    label_of,
    published_threshold,
    repetition_probabilities,
    repetition_prompts,
)

PLACEHOLDER, ID = "qqzz", 1_114_112
LONGER = "jjkkxx"


def characters(text: str) -> list[int]:
    """Every character is a token, but for two words."""
    words = {PLACEHOLDER: ID, LONGER: ID + 1}
    return [words[part] if part in words else ord(part) for part in re.findall(r"qqzz|jjkkxx|.", text, re.DOTALL)]


def text_of(prompt: RepetitionPrompt, token: str) -> str:
    return "".join(token if place else chr(id) for id, place in zip(prompt.token_ids, prompt.is_place, strict=True))


def test_prompts_are_the_published_ones() -> None:
    prompts = {prompt.name: prompt for prompt in repetition_prompts(characters, PLACEHOLDER, ID)}

    assert text_of(prompts["assistant_explain"], "pie") == (
        "This helpful assistant explains what a phrase means, replying with identical responses to identical questions "
        "for reliability.\nUser: What does 'edslfkj' mean?\nAssistant: 'edslfkj' has no specific meaning I am aware "
        "of.\nUser: what does 'pie' mean?\nAssistant: '"
    )
    asked = "This device repeats its input exactly, as shown in these 100 identical trials."
    asked += "\nInput: «pie»\nOutput: «pie»" * 20 + "\nInput: «pie»\nOutput: «"
    assert text_of(prompts["input_output"], "pie") == asked
    repeated = "Below is the output, as you can see it's just giving the same phrase repeated indefinitely:\n"
    assert text_of(prompts["repeats"], "pie") == repeated + "pie" * 101
    assert {name: int(prompt.is_place.sum()) for name, prompt in prompts.items()} == {
        "input_output": 41,
        "assistant_explain": 1,
        "repeats": 101,
    }


def test_the_placeholder_is_one_token_wherever_it_stands() -> None:
    """A longer word that melts into its neighbours does not serve, nor does one that the prompts hold themselves."""
    words = [(7, "reliability"), (ord("e"), "e"), (9, "zz"), (10, "LONGEST"), (11, "née")]

    assert find_placeholder([*words, (ID, PLACEHOLDER)], characters) == (ID, PLACEHOLDER)
    assert find_placeholder([*words, (ID, PLACEHOLDER), (ID + 1, LONGER)], characters) == (ID + 1, LONGER)
    with pytest.raises(ValueError, match="none of 3 tokens"):
        find_placeholder(words, characters)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "gpt_neox"},
        {
            **{"model_type": "olmo3", "num_key_value_heads": 2, "sliding_window": 8},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ],
    ids=lambda config: config["model_type"],
)
def test_many_at_once_are_as_one_by_one(config: dict[str, Any]) -> None:
    """The shared beginning, the batch and the kept keys change nothing but the order of sums."""
    torch.manual_seed(3)
    parsed = AutoConfig.for_model(**SMALL, **config, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(parsed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # so that predictions differ
    ids = np.array([3, 4, 5, 6, 7, 8, 9, 1, 10, 1, 11, 1, 12, 13] + [1, 14] * 9)
    prompt = RepetitionPrompt(name="p", token_ids=ids, is_place=ids == 1)
    tokens = np.arange(20, 31)
    answers = list(repetition_probabilities(model, prompt, tokens, rows_at_once=4))

    assert [len(chances) for chances, _ in answers] == [4, 4, 3]
    chances, said = (np.concatenate(part) for part in zip(*answers, strict=True))
    for n, token in enumerate(tokens):
        row = torch.from_numpy(np.where(ids == 1, token, ids))[None]
        alone = model.generate(
            row, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        expected = [float(logits.softmax(dim=-1)[0, token]) for logits in alone.logits]
        assert said[n].tolist() == alone.sequences[0, len(ids) :].tolist()
        # fp32 sums of a few hundred products in another order.
        np.testing.assert_allclose(chances[n], expected, rtol=1e-4)
    assert len(np.unique(said)) > 3


@dataclass
class FullDevice:
    """A model whose memory holds three rows."""

    asked: list[int] = field(default_factory=list)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
        self.asked.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("full")
        return SimpleNamespace(past_key_values=None, logits=torch.zeros(len(input_ids), 1, 50))


def test_a_full_device_is_given_fewer_rows() -> None:
    model, ids = FullDevice(), np.array([1, 1, 2])
    prompt = RepetitionPrompt(name="p", token_ids=ids, is_place=ids == 1)
    answers = list(repetition_probabilities(model, prompt, np.arange(10, 17), rows_at_once=8))

    assert [len(chances) for chances, _ in answers] == [2, 2, 2, 1] and model.asked[:3] == [7, 4, 2]
    assert all((chances == np.float32(0.02)).all() for chances, _ in answers)


def test_no_number_is_no_probability() -> None:
    """A row of NaN must not pass for a token that can be repeated, nor for one whose label is not known."""

    class Broken(FullDevice):
        def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(past_key_values=None, logits=torch.full((len(input_ids), 1, 50), torch.nan))

    ids = np.array([1, 2])
    prompt = RepetitionPrompt(name="p", token_ids=ids, is_place=ids == 1)
    ((chances, _),) = repetition_probabilities(Broken(), prompt, np.array([7]))

    assert chances.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("highest", "encodeable", "label"),
    [
        (0.91, True, "strong_rejected"),
        (0.9, True, "weak_rejected"),
        (0.11, False, "weak_rejected"),
        (0.1, True, "weak_verified"),
        (0.001, True, "weak_verified"),
        (0.0009, True, "strong_verified"),
        (0.0009, False, "encoding_failed"),
    ],
)
def test_labels_are_the_published_ones(highest: float, encodeable: bool, label: str) -> None:
    assert label_of(highest, encodeable=encodeable) == label


def test_the_published_threshold_is_where_verified_ones_get_rare() -> None:
    values, verified = np.arange(200.0), np.arange(200) < 100

    # Places 83 to 107 around 95 hold 17 verified ones of 25, two thirds and a little; those around 96 hold 16.
    assert published_threshold(values, verified) == 95.0
    assert published_threshold(values, ~verified) is None
    assert published_threshold(values[:5], verified[:5]) == 4.0
    assert published_threshold(np.arange(3.0), np.array([True, True, False])) == 2.0
