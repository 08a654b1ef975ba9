"""The recipe of LLM360's Amber: constants of its training script, the model of its checkpoints' config.json.

Source: LLM360/amber-train @ 64bc595 (main.py, main_utils.py); 224 GPUs with 10 rows each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.run import Run
from replay.config_fields import ConfigFields
from replay.recipe import Recipe
from replay.schedule_readers import AMBER

# What transformers writes into a config.json and no model is built from.
_NOT_THE_MODEL = ("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache")
ROWS_PER_RANK = 10


def recipe_from(run: Run, approximate: bool) -> Recipe:
    """
    Raises:
        KeyError: no checkpoint with a config.json lay beside the data.
    """
    fields = ConfigFields(run.config, "config.json of the checkpoints", approximate=approximate)
    model: Mapping[str, Any] = fields.config["model"]
    return Recipe(
        model={key: value for key, value in model.items() if key not in _NOT_THE_MODEL},
        learning_rate=3e-4,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        schedule=AMBER,
        max_grad_norm=1.0,
        labels="extra_token",
        instances_per_microbatch=ROWS_PER_RANK,
        precision="bf16",
        unfaithful=("bf16-mixed under FSDP: parameters were cast to bf16 as a whole, here autocast does",),
        approximated=tuple(fields.approximated),
    )
