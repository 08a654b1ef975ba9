"""Norms and spectra of stored tensors against numpy, with only the tensors that were asked for at hand."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from probes.parameter_groups import groups_by_name, groups_by_part
from probes.probe import Measurement, TensorProbe
from probes.spectral_tail import power_law_from
from probes.spectrum_probes import MatrixSpectra
from probes.weight_probes import EmbeddingNorms, WeightNorms
from replay.models import build_model
from tests.forensics.test_architectures import MODELS
from tests.probes.tiny_models import tiny_model

KINDS = {"llama": "model.embed_tokens.weight", "gpt_neox": "gpt_neox.embed_in.weight"}


def stored(kind: str) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().bfloat16() for name, tensor in tiny_model(kind).state_dict().items()}


def measured(probe: TensorProbe, tensors: Mapping[str, torch.Tensor]) -> dict[str, Measurement]:
    """Handing over no more than what it asks for; everything that was measured has the unit 1."""
    asked = probe.tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    found = probe.measure_tensors({name: tensors[name] for name in asked})
    assert {one.unit for one in found} <= {"1"} and len({one.metric for one in found}) == len(found)
    return {one.metric: one for one in found}


def elements(tensors: Mapping[str, torch.Tensor], *names: str) -> np.ndarray:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_those_of_all_elements_of_a_part(kind: str) -> None:
    tensors = stored(kind)
    found = measured(WeightNorms(), tensors)
    layer = [name for name, tensor in tensors.items() if "layers.1." in name and tensor.dim() == 2]
    parts = {"all": list(tensors), "input embedding": [KINDS[kind]], "output embedding": ["lm_head.weight"]}
    parts |= {"layer 1 matrices": layer}

    assert list(found)[:2] == ["norm, all", "root mean square, all"]
    assert {name.split(", ")[1] for name in found} == {*parts, "layer 0 matrices"}
    for part, names in parts.items():
        values = elements(tensors, *names)
        assert found[f"norm, {part}"].value == pytest.approx(np.linalg.norm(values), rel=1e-9)
        assert found[f"root mean square, {part}"].value == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-9)


def test_an_embedding_that_is_stored_once_is_tied() -> None:
    tensors = stored("llama")
    del tensors["lm_head.weight"]
    norms, rows = measured(WeightNorms(), tensors), measured(EmbeddingNorms(), tensors)

    assert "norm, tied embedding" in norms and "norm, input embedding" not in norms
    assert [name.split(", ")[1] for name in rows] == ["tied embedding"] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_row_norms_of_embeddings_need_the_embeddings_only(kind: str) -> None:
    tensors = stored(kind)
    probe = EmbeddingNorms()
    found = measured(probe, tensors)

    assert set(probe.tensors({n: tuple(t.shape) for n, t in tensors.items()})) == {KINDS[kind], "lm_head.weight"}
    for group, name in (("input embedding", KINDS[kind]), ("output embedding", "lm_head.weight")):
        norms = sorted(math.sqrt(sum(x * x for x in row)) for row in tensors[name].double().tolist())
        assert len(norms) == 61  # so that the median and the percentiles 5 and 95 are the 31st, 4th and 58th
        assert found[f"mean row norm, {group}"].value == pytest.approx(sum(norms) / 61, rel=1e-6)
        assert found[f"median row norm, {group}"].value == pytest.approx(norms[30], rel=1e-6)
        assert found[f"5th percentile of row norms, {group}"].value == pytest.approx(norms[3], rel=1e-6)
        assert found[f"95th percentile of row norms, {group}"].value == pytest.approx(norms[57], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_tails_are_those_of_numpys_singular_values(kind: str) -> None:
    tensors = stored(kind)
    found = measured(MatrixSpectra(), tensors)
    matrices = [name for name, tensor in tensors.items() if ".layers." in name and tensor.dim() == 2]
    of_kinds: dict[str, list[dict[str, float]]] = {}

    assert len(matrices) == 2 * len({name.split(".", 3)[3] for name in matrices}) >= 8
    for name in matrices:
        values = np.linalg.svd(tensors[name].double().numpy(), compute_uv=False)
        shares = values / values.sum()
        tails = [power_law_from(np.sort(values**2)[start:]) for start in range(len(values) - 1)]
        law = min((tail for tail in tails if tail is not None), key=lambda tail: tail.distance)
        expected = {
            "stable rank": (values**2).sum() / values[0] ** 2,
            "effective rank": math.exp(-(shares * np.log(shares)).sum()),
            "spectral norm": values[0],
            "alpha": law.alpha,
            "distance": law.distance,
        }
        short = name.removesuffix(".weight")
        assert {key: found[f"{key}, {short}"].value for key in expected} == pytest.approx(expected, rel=1e-6)
        of_kinds.setdefault(short.split(".", 3)[3], []).append(expected)
    for part, (first, second) in of_kinds.items():
        for key in first:
            assert found[f"{key}, mean of {part}"].value == pytest.approx((first[key] + second[key]) / 2, rel=1e-6)
    assert len(found) == 5 * (len(matrices) + len(of_kinds))


def test_only_what_is_asked_for_is_measured_and_only_matrices_of_layers_are_read() -> None:
    tensors = stored("llama")
    ranks, tails = measured(MatrixSpectra(tail=False), tensors), measured(MatrixSpectra(ranks=False), tensors)
    asked = MatrixSpectra().tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    assert {name.split(",")[0] for name in ranks} == {"stable rank", "effective rank", "spectral norm"}
    assert {name.split(",")[0] for name in tails} == {"alpha", "distance"}
    assert len(asked) == 14 and not any("norm" in name or "embed" in name or "head" in name for name in asked)
    shapes = {"model.layers.0.experts.up": (4, 3, 2), "model.layers.0.none.weight": (0, 5), "lm_head.weight": (9, 2)}
    assert not MatrixSpectra().tensors(shapes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_what_depends_on_it_and_nothing_else(bad: float) -> None:
    """Of a diverged checkpoint the sound parts are still of interest."""
    tensors = {name: tensor.clone() for name, tensor in stored("llama").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = bad
    tensors["model.embed_tokens.weight"][5, 3] = bad
    norms, rows, spectra = (measured(one, tensors) for one in (WeightNorms(), EmbeddingNorms(), MatrixSpectra()))

    def undefined(found: Mapping[str, Measurement]) -> set[str]:
        assert not any(math.isinf(one.value) for one in found.values())
        return {name.split(", ")[1] for name, one in found.items() if math.isnan(one.value)}

    assert undefined(norms) == {"all", "input embedding", "layer 1 matrices"}
    assert undefined(rows) == {"input embedding"}
    assert undefined(spectra) == {"model.layers.1.mlp.up_proj", "mean of mlp.up_proj"}


def test_a_matrix_of_zeros_has_no_rank_and_no_tail() -> None:
    found = measured(MatrixSpectra(), {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)})

    assert found["spectral norm, model.layers.0.mlp.up_proj"].value == 0.0
    assert all(math.isnan(one.value) for name, one in found.items() if not name.startswith("spectral norm"))


@pytest.mark.parametrize("architecture", MODELS)
def test_names_alone_tell_the_parts_that_a_model_says(architecture: str) -> None:
    """What is read of a file is what the model built from it would say, tied or not."""
    for tied in (False, True):
        config = MODELS[architecture] | {"tie_word_embeddings": tied}
        model = build_model(config, device=torch.device("cpu"), seed=1)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

        assert groups_by_name(shapes) == groups_by_part(model)
        assert "other matrices" not in groups_by_name(shapes)
