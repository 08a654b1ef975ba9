import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_index.errors import ChangedModel, FailedFunction
from forensics.probing_function import ProbingFunction
from probes.loss import token_losses
from probes.probe import Measurement
from tests.probes.tiny_models import VOCABULARY, tiny_model

ROWS = np.random.default_rng(1).integers(0, VOCABULARY, (3, 9)).astype(np.uint16)

Written = Callable[[str], ProbingFunction]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """A file of functions in the current folder, as a user writes it, and the probe that its function `f` is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source: str) -> ProbingFunction:
        sys.modules.pop("users_probes", None)
        Path("users_probes.py").write_text(f"import numpy as np\nimport torch\n{source}\n")
        return ProbingFunction(name="users_probes:f", token_ids=ROWS)

    yield write
    sys.modules.pop("users_probes", None)


def test_a_function_sees_the_model_and_the_rows(written: Written) -> None:
    """The example of the documentation, against the project's own losses."""
    example = [
        line.removeprefix("    ")
        for line in (sys.modules["forensics.probing_function"].__doc__ or "").splitlines()
        if line.startswith("    ")
    ]
    assert "def median_loss" in example[1]
    probe = replace(written("\n".join(example)), name="users_probes:median_loss")
    model = tiny_model("llama")
    found = probe.prepared().measure_model(model)

    losses = token_losses(model, ROWS.astype(np.int64))
    assert [(one.metric, one.unit, one.low, one.high) for one in found] == [
        ("median", "", None, None),
        ("largest", "", None, None),
    ]
    assert found[0].value == pytest.approx(
        np.sort(losses.flatten())[(losses.size - 1) // 2], rel=1e-6
    )  # rounded otherwise
    assert found[1].value == pytest.approx(losses.max(), rel=1e-6)


@pytest.mark.parametrize(
    ("gives", "expected"),
    [
        ("3", [("f", 3.0)]),
        ("np.float32(0.5)", [("f", 0.5)]),
        ("torch.tensor(2, dtype=torch.bfloat16)", [("f", 2.0)]),
        ("np.array(1.5)", [("f", 1.5)]),
        ("{'one': 1, 'two': torch.tensor(2.0)}", [("one", 1.0), ("two", 2.0)]),
    ],
)
def test_numbers_of_any_library_are_taken(written: Written, gives: str, expected: list[tuple[str, float]]) -> None:
    found = written(f"def f(model): return {gives}").measure_model(tiny_model("llama"))

    assert [(one.metric, one.value) for one in found] == expected


def test_measurements_are_taken_as_they_are(written: Written) -> None:
    source = "from probes.probe import Measurement\ndef f(model): return "
    one = Measurement(metric="norm", value=1.0, unit="norm", low=0.5, high=2.0, text="said")
    model = tiny_model("llama")

    assert written(source + repr(one)).measure_model(model) == [one]
    assert written(source + repr([one, replace(one, metric="b")])).measure_model(model) == [
        one,
        replace(one, metric="b"),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "gave None, of type NoneType; a probe gives a number, a dict"),
        ("return True", "gave True, of type bool"),
        ("return 'high'", "gave 'high', of type str"),
        ("return torch.ones(2)", r"gave tensor\(\[1., 1.\]\), of type Tensor"),
        ("return {'a': 'b'}", "gave 'b', of type str"),
        ("return {1: 2.0}", "of type dict"),
        ("return [1.0, 2.0]", "of type list"),
        ("return []", r"measured nothing: it gave \[\]"),
        ("raise KeyError('no such layer')", r"users_probes:f failed: KeyError\('no such layer'\)"),
    ],
)
def test_anything_else_is_said(written: Written, body: str, said: str) -> None:
    with pytest.raises(FailedFunction, match=said):
        written(f"def f(model): {body}").measure_model(tiny_model("llama"))


def test_one_name_for_two_numbers_is_an_error(written: Written) -> None:
    source = (
        "from probes.probe import Measurement\ndef f(model): return [Measurement(metric='a', value=1, unit='')] * 2"
    )
    with pytest.raises(FailedFunction, match="gave two numbers called 'a'"):
        written(source).measure_model(tiny_model("llama"))


def test_functions_that_want_tokens_need_some(written: Written) -> None:
    without = replace(written("def f(model, token_ids): return token_ids.sum()"), token_ids=None)
    with pytest.raises(FailedFunction, match="wants held-out tokens besides the model, and the run has none"):
        without.prepared()
    assert replace(without, token_ids=ROWS).measure_model(tiny_model("llama"))[0].value == ROWS.sum()
    with pytest.raises(FailedFunction, match="^users_probes has no function 'g', which users_probes:g names"):
        replace(without, name="users_probes:g").prepared()
    with pytest.raises(FailedFunction, match="such as my_probes:median_loss"):
        replace(without, name="users_probes").prepared()


CHANGES = {
    "one number, behind torch's back": "model.lm_head.weight.data[3, 3] += 0.5",
    "two numbers change places": "model.lm_head.weight[[0, 1]] = model.lm_head.weight[[1, 0]]",
    "another parameter": "model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)",
    "one that learns no more": "model.lm_head.weight.requires_grad_(False)",
    "half the bits": "model.half()",
    "other attention": "model.set_attn_implementation('eager')",
    "a setting": "model.config.rms_norm_eps = 0.1",
    "a hook that stays": "model.lm_head.register_forward_hook(lambda *seen: None)",
    "a change and then an error": "model.lm_head.weight.zero_(); raise ValueError('too late')",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_function_that_changes_the_model_is_caught(written: Written, change: str) -> None:
    """A silent change would poison every probe after it."""
    with pytest.raises(ChangedModel, match="users_probes:f changed .* of the model .*a probe changes nothing"):
        written(f"def f(model):\n    {change}\n    return 1").measure_model(tiny_model("llama"))


def test_modes_and_gradients_are_put_back(written: Written) -> None:
    """A function may train its heart out inside, as long as the weights stay."""
    source = """
def f(model, token_ids):
    assert not model.training and not torch.is_grad_enabled()
    model.train()
    token_ids[:] = 0
    with torch.enable_grad():
        model(input_ids=torch.from_numpy(token_ids)).logits.sum().backward()
    return sum(p.grad.norm() for p in model.parameters())
"""
    model: Any = tiny_model("llama")
    model.model.layers[0].train()
    kept = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = kept
    before = [module.training for module in model.modules()]
    first, second = (written(source).measure_model(model)[0].value for _ in range(2))

    assert first == second > 0
    assert [module.training for module in model.modules()] == before
    assert model.lm_head.weight.grad is kept and model.model.embed_tokens.weight.grad is None
    assert bool((kept == 1).all()) and (ROWS > 0).any()


def test_settings_tell_functions_and_rows_apart(written: Written) -> None:
    """Kept numbers of an edited function, or of other rows, are not taken for its own."""
    probe = written("def f(model, token_ids): return 1")
    first = probe.settings()

    assert first["function"] == "users_probes:f"
    assert replace(probe, token_ids=ROWS.astype(np.int64)).settings() == first
    assert replace(probe, token_ids=ROWS[::-1]).settings()["rows"] != first["rows"]
    assert replace(probe, token_ids=ROWS.reshape(9, 3)).settings()["rows"] != first["rows"]
    edited = written("def f(model, token_ids): return 2").settings()
    assert edited["sha256"] != first["sha256"] and edited["rows"] == first["rows"]
    assert written("def f(model): return 1").settings()["rows"] is None
