"""What GPT-NeoX does where its configuration says nothing, by version; what is not replayed is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_index.errors import UnsupportedRecipe
from data_index.run import Order, OrderTrust, Run, Segment
from replay.recipe import Recipe, recipe_of_run

CONFIG: Mapping[str, Any] = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "seq_length": 32,
    "padded_vocab_size": 128,
    "pos_emb": "rotary",
    "attention_dropout": 0,
    "hidden_dropout": 0,
    "optimizer": {"type": "Adam", "params": {"lr": 0.006}},
    "train_iters": 20,
}


def run(version: str, **changes: Any) -> Run:
    return Run(
        name="toy",
        layout="neox",
        source=Path("."),
        sequence_length=33,
        files=(),
        order=Order(rule="sequential"),
        segments=(Segment(first_step=1, num_steps=20, epoch=1, first_position=0, instances_per_batch=8),),
        trust=OrderTrust(level="derived", witness="a test"),
        config_format="neox",
        config={name: value for name, value in (CONFIG | changes).items() if value != "absent"},
        extra_label=True,
        facts={"neox_version": version},
    )


def recipe(version: str, **changes: Any) -> Recipe:
    return recipe_of_run(run(version, **changes))


def test_defaults_are_those_of_the_version() -> None:
    assert (recipe("v1.0").weight_decay, recipe("main").weight_decay) == (0.01, 0.1)
    assert recipe("main", attention_dropout="absent", hidden_dropout="absent").weight_decay == 0.1
    with pytest.raises(UnsupportedRecipe, match="attention_dropout = 0.1: which units were dropped is not known"):
        recipe("v1.0", attention_dropout="absent")


@pytest.mark.parametrize(
    ("version", "stated", "limit"),
    [
        ("v1.0", "absent", None),
        ("v1.0", 1.0, 1.0),
        ("main", "absent", None),
        ("main", 1.0, None),
        ("main", 0.5, 0.5),
        ("main", 0, None),
    ],
)
def test_gradients_are_clipped_where_the_trainer_does(version: str, stated: Any, limit: float | None) -> None:
    """Main keeps its own default, 1.0, from DeepSpeed, which clips only to what it is told (seen by running it)."""
    assert recipe(version, gradient_clipping=stated).max_grad_norm == limit


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpt_j_tied", True),
        ("use_bias_in_attn_linear", False),
        ("use_bias_in_norms", False),
        ("num_kv_heads", 1),
        ("use_qk_layernorm", True),
        ("sliding_window_width", 8),
        ("train_impl", "dpo"),
        ("soft_prompt_tuning", {"enabled": True}),
    ],
)
def test_models_and_losses_of_another_kind_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedRecipe, match=f"{name}.* makes a different step than this version replays"):
        recipe("main", **{name: value})


def test_numbers_may_be_written_as_text() -> None:
    """YAML 1.1 reads 1e-2 as text."""
    assert recipe("v1.0", warmup="1e-1").schedule == recipe("v1.0", warmup=0.1).schedule


def test_gradients_that_main_adds_up_are_mentioned() -> None:
    parts = {"pipe_parallel_size": 1, "gradient_accumulation_steps": 2}

    assert "adds up a pipeline's gradients" in " ".join(recipe("main", **parts).unfaithful)
    assert recipe("v1.0", **parts).unfaithful == ()
    assert recipe("main", **parts | {"pipe_parallel_size": 0}).unfaithful == ()


def test_weights_in_bf16_are_mentioned() -> None:
    assert "the trainer kept weights in bf16" in " ".join(recipe("main", bf16={"enabled": True}).unfaithful)
