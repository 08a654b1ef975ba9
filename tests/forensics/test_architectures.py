"""Every architecture that is replayed: trained in the native format, replayed bit for bit; others are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_index.errors import UnsupportedRecipe
from data_index.files import sha256_of_file, write_npy
from data_index.registration import add
from data_index.run import Order, OrderTrust, Run, Segment
from data_index.run_file import write_run
from data_index.sources.folder import place_files
from data_index.tokens import TokenReader
from data_index.workspace import Workspace
from forensics.reproduction import replay
from forensics.sample_run import plan_of_segments
from replay.curves import ConstantWithWarmup
from replay.determinism import deterministic
from replay.models import build_model
from replay.recipe import Recipe, SkipRule
from replay.recording import Recording, SavePolicy, advance
from replay.schedule import Schedule
from replay.train_state import initial_state

LENGTH, ROWS, STEPS = 16, 4, 6
COMMON = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "eos_token_id": 0,
}
SHARED_HEADS = COMMON | {"num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "olmo": SHARED_HEADS | {"model_type": "olmo", "clip_qkv": 0.5},
    "olmo2": SHARED_HEADS | {"model_type": "olmo2"},
    "olmo3": SHARED_HEADS
    | {
        "model_type": "olmo3",
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
        },
    },
    "gpt_neox": COMMON | {"model_type": "gpt_neox", "use_parallel_residual": True},
    "llama": SHARED_HEADS | {"model_type": "llama", "tie_word_embeddings": True},
}


def recipe_of(model: dict[str, Any], **settings: Any) -> Recipe:
    defaults = Recipe(
        model=model,
        learning_rate=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        schedule=Schedule(curve=ConstantWithWarmup(warmup_steps=2)),
        max_grad_norm=1.0,
    )
    return replace(defaults, **settings)


def train(folder: Path, recipe: Recipe) -> None:
    """A native run folder with checkpoints 0, 2, 4 and 6."""
    tokens = np.random.default_rng(5).integers(0, 61, ROWS * STEPS * LENGTH).astype("<u2")
    (folder / "tokens").mkdir(parents=True)
    tokens.tofile(folder / "tokens" / "text.bin")
    write_npy(folder / "order" / "epoch-1.npy", np.random.default_rng(6).permutation(ROWS * STEPS).astype(np.uint32))
    order = {"path": "order/epoch-1.npy", "sha256": sha256_of_file(folder / "order" / "epoch-1.npy")}
    run = Run(
        name=folder.name,
        layout="native",
        source=folder,
        sequence_length=LENGTH,
        extra_label=recipe.labels == "extra_token",
        files=place_files(["text.bin"], [folder / "tokens" / "text.bin"], "uint16", lambda size: size // (2 * LENGTH)),
        order=Order(rule="file", parameters={"epoch_1": order}),
        segments=(Segment(first_step=1, num_steps=STEPS, epoch=1, first_position=0, instances_per_batch=ROWS),),
        trust=OrderTrust(level="exact", witness="the order that it was trained in"),
        config_format="native",
        config={"model": dict(recipe.model), "recipe": recipe.to_table()},
        environment={"num_threads": 1},
    )
    write_run(run, folder)
    with deterministic(1):
        results = advance(
            Recording(folder=folder, policy=SavePolicy(every=2)),
            start=lambda saved: initial_state(recipe, seed=3, device=torch.device("cpu")),
            plan=plan_of_segments(run),
            reader=TokenReader(run, None),
            recipe=recipe,
            save_start=True,
        )
        assert len(list(results)) == STEPS


SETTINGS: dict[str, dict[str, Any]] = {
    "as the trainer of OLMo-core": {"parameter_order": "olmo_core", "z_loss": 1e-4},
    "as the legacy OLMo trainer": {
        "parameter_order": "olmo",
        "labels": "last_dropped",
        "denominator": "tokens",
        "z_loss": 1e-4,
        "no_decay": ("model.embed_tokens.weight",),
    },
    "one token more a row": {"labels": "extra_token"},
    "with the skip rule": {"skip": SkipRule(interval=6, sigma=0.1)},
    "documents apart": {"document_end_token": 7},
    "two ranks and micro-batches": {"num_ranks": 2, "instances_per_microbatch": 1},
}
CASES = [
    *((name, "") for name in MODELS),
    *(("olmo2", settings) for settings in SETTINGS),
    ("olmo3", "documents apart"),
]


@pytest.mark.parametrize(("model", "settings"), CASES)
def test_a_run_of_each_kind_replays_bit_for_bit(model: str, settings: str, tmp_path: Path) -> None:
    recipe = recipe_of(MODELS[model], **SETTINGS.get(settings, {}))
    train(tmp_path / "run", recipe)
    workspace = Workspace(tmp_path / "workspace")
    add(tmp_path / "run", workspace=workspace)

    for steps in ("0:6", "2:4", "4:6"):
        report = replay("run", steps, workspace=workspace, device="cpu")
        assert (report.grade, report.first_divergent_step) == ("R0", None), steps
    if "skip" in settings:
        skipped = [row["skipped"] for row in replay("run", "0:6", workspace=workspace, device="cpu").steps]
        assert any(skipped) and not all(skipped)


def test_another_architecture_is_indexed_and_not_replayed(tmp_path: Path) -> None:
    train(tmp_path / "run", recipe_of(MODELS["llama"]))
    text = (tmp_path / "run" / "run.toml").read_text()
    (tmp_path / "run" / "run.toml").write_text(text.replace('model_type = "llama"', 'model_type = "mamba"'))
    workspace = Workspace(tmp_path / "workspace")
    add(tmp_path / "run", workspace=workspace)

    with pytest.raises(UnsupportedRecipe, match="'mamba' are not replayed; olmo, olmo2, .* indexed and probed all"):
        replay("run", "0:2", workspace=workspace, device="cpu")


def test_dropout_cannot_be_taken_again() -> None:
    with pytest.raises(UnsupportedRecipe, match="attention_dropout = 0.1: which units were dropped"):
        build_model(MODELS["llama"] | {"attention_dropout": 0.1}, device=torch.device("cpu"))
