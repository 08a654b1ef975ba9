"""The names of metrics that every trainer logs and calls differently: one name here, the original one beside it.

A name is given where it is certain what a number means; everything else keeps the name that its log gave it. Losses
over held-out text, means over a whole run, and times in other units are no `loss` and no `seconds_per_step`.

Source: allenai/OLMo olmo/train.py @ 59a53e3; allenai/OLMo-core src/olmo_core/train @ fa6c501; EleutherAI/gpt-neox
megatron/logging.py v1.0; NVIDIA/Megatron-LM megatron/training/training.py; bigscience-workshop/Megatron-DeepSpeed
megatron/training.py; huggingface/transformers src/transformers/trainer.py; karpathy/llm.c train_gpt2.cu
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Where one log has several of a line, the first of them gets the name, and the name itself comes before all.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "loss": (
        "ce_loss",
        "train/CrossEntropyLoss",
        "train/CE loss",
        "train/lm_loss",
        "lm loss",
        "lm_loss",
        "lm-loss-training/lm loss",
        "train/loss",
        "train_loss",
        "training_loss",
        "training loss",
        "loss_metrics/global_avg_loss",
        "trl",
    ),
    "z_loss": ("train/ZLoss", "train/Z loss", "z loss", "zloss"),
    "grad_norm": (
        "optim/total_grad_norm",
        "optim/total grad norm",
        "grad norm",
        "grad-norm",
        "gradient_norm",
        "train/grad_norm",
        "grad-norm/grad-norm",
        "train/grad_norm_total",
    ),
    "learning_rate": (
        "lr",
        "learning rate",
        "optim/learning_rate_group0",
        "optim/LR (group 0)",
        "train/learning_rate",
        "train/lr",
        "learning-rate",
        "learning-rate/learning-rate",
    ),
    "tokens": (
        "tokens_seen",
        "throughput/total_tokens",
        "throughput/total tokens",
        "consumed tokens",
        "consumed_tokens",
        "num_input_tokens_seen",
        "train/num_input_tokens_seen",
    ),
    "skipped": ("optim/step skipped", "number of skipped iterations"),
    "validation_loss": (
        "val_loss",
        "val/loss",
        "eval_loss",
        "eval/loss",
        "valid_loss",
        "valid/loss",
        "validation/loss",
        "validation loss",
        "validation lm loss value",
        "validation lm_loss value",
        "validation/lm_loss",
        "lm-loss-validation/lm loss validation",
        "tel",
    ),
    "loss_scale": ("loss scale", "loss-scale", "train/loss_scale", "loss-scale/loss-scale"),
    "batch_size": ("global batch size", "global_batch_size", "batch-size", "batch-size/batch-size"),
    "samples": ("consumed samples", "consumed_samples"),
    "num_zeros": ("num zeros", "num-zeros", "num_zeros_in_grad"),
    "params_norm": ("params norm", "params-norm"),
    "seconds_per_step": (
        "elapsed time per iteration (s)",
        "iteration-time",
        "iteration-time/iteration-time",
        "runtime/iteration_time",
    ),
}
CANONICAL_NAMES: Mapping[str, str] = {synonym: name for name, group in SYNONYMS.items() for synonym in group}


def canonical_names(originals: Iterable[str], unclear: Iterable[str] = ()) -> dict[str, str]:
    """The name that each original one of a log gets; no two get the same.

    Args:
        unclear: originals that keep their name, because here they do not mean what they mean elsewhere.
    """
    there = dict.fromkeys(originals)
    names = {original: original for original in there}
    kept = set(unclear)
    for name, synonyms in SYNONYMS.items():
        found = [synonym for synonym in synonyms if synonym in there and synonym not in kept]
        if found and name not in there:
            names[found[0]] = name
    return names
