import copy

import numpy as np
import pytest
import torch

from probes.differentiable_loss import differentiable_mean_loss
from probes.loss import mean_loss
from replay.models import build_model
from tests.forensics.test_architectures import MODELS

TOKENS = np.random.default_rng(1).integers(0, 61, size=(3, 12)).astype(np.uint16)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "olmo3"])
def test_lent_weights_give_the_loss_of_a_model_that_has_them(architecture: str) -> None:
    """The llama is tied: the one name of its embedding has to stand for its output too."""
    model = build_model(MODELS[architecture], device=torch.device("cpu"), seed=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(2)
    moved = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(moved[name])

    assert differentiable_mean_loss(model, TOKENS).item() == pytest.approx(mean_loss(model, TOKENS), rel=1e-6)
    lent = differentiable_mean_loss(model, TOKENS, moved).item()
    assert lent == pytest.approx(mean_loss(other, TOKENS), rel=1e-6)
    assert abs(lent - mean_loss(model, TOKENS)) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
