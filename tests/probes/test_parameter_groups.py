import math

import pytest
import torch

from probes.norms import norms_by_group, root_mean_squares_by_group
from probes.parameter_groups import groups_by_part
from replay.models import build_model
from tests.forensics.test_architectures import MODELS

LAYERS = ["layer 0 matrices", "layer 0 vectors", "layer 1 matrices", "layer 1 vectors", "other vectors"]
CASES = {
    "llama": (True, ["tied embedding", *LAYERS]),
    "gpt_neox": (False, ["input embedding", *LAYERS, "output embedding"]),
    "olmo3": (False, ["input embedding", *LAYERS, "output embedding"]),
}


@pytest.mark.parametrize("architecture", CASES)
def test_every_parameter_is_in_one_group(architecture: str) -> None:
    tied, expected = CASES[architecture]
    model = build_model(MODELS[architecture] | {"tie_word_embeddings": tied}, device=torch.device("cpu"), seed=1)
    groups = groups_by_part(model)

    assert sorted(groups) == sorted(expected)
    assert sorted(sum(groups.values(), [])) == sorted(name for name, _ in model.named_parameters())
    assert groups[expected[0]] == [
        "gpt_neox.embed_in.weight" if architecture == "gpt_neox" else "model.embed_tokens.weight"
    ]


def test_norms_and_root_mean_squares_of_the_parts_of_a_model() -> None:
    """Against torch over all elements in a row; a fresh model's matrices have the root mean square of its config."""
    model = build_model(MODELS["llama"] | {"initializer_range": 0.02}, device=torch.device("cpu"), seed=1).bfloat16()
    named, groups = dict(model.named_parameters()), groups_by_part(model)
    together = {
        group: torch.cat([named[name].detach().flatten() for name in names]).double() for group, names in groups.items()
    }
    means = dict(zip(groups, root_mean_squares_by_group(named, groups), strict=True))

    assert norms_by_group(named, groups) == pytest.approx([float(x.norm()) for x in together.values()], rel=1e-12)
    assert list(means.values()) == pytest.approx(
        [float(x.square().mean().sqrt()) for x in together.values()], rel=1e-12
    )
    assert means["layer 1 vectors"] == 1.0
    count = together["layer 1 matrices"].numel()
    # The root mean square of so many normal numbers scatters by 1 / sqrt(2 n); 5 of that.
    assert means["layer 1 matrices"] == pytest.approx(0.02, rel=5 / math.sqrt(2 * count))
