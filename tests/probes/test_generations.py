from typing import Any

import numpy as np
import pytest
import torch

from probes.generations import drawn_tokens, greedy_continuations, sampled_continuations
from probes.memorization import extractability
from tests.probes.tiny_models import CONFIGS, VOCABULARY, tiny_model

KINDS = sorted(CONFIGS)
# Longer than the sliding window and shorter; several of one length, not side by side.
PROMPTS = [np.random.default_rng(n).integers(1, VOCABULARY, length) for n, length in enumerate((3, 9, 1, 9, 3, 6, 9))]


def generated(model: Any, prompt: np.ndarray, **settings: Any) -> list[int]:
    """transformers' own answer to one prompt, without the prompt."""
    ids = torch.from_numpy(prompt)[None]
    model.generation_config.pad_token_id = 0
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return answer[0, len(prompt) :].tolist()


def taken_whole(model: Any, ids: list[int]) -> torch.Tensor:
    """Probabilities of the next token, computed without a cache, in fp64."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("implementation", ["sdpa", "forensics"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuations_equal_generate_prompt_by_prompt(kind: str, implementation: str) -> None:
    """Independent value: transformers generate, one prompt at a time, with its own attention."""
    model, reference = tiny_model(kind, implementation), tiny_model(kind)
    reference.load_state_dict(model.state_dict())
    found = greedy_continuations(model, PROMPTS, 10, rows_at_once=2)

    assert [row.tolist() for row in found] == [
        generated(reference, prompt, max_new_tokens=10, eos_token_id=None) for prompt in PROMPTS
    ]


def test_a_continuation_ends_with_the_end_token_or_never_has_it() -> None:
    """As generate does with the same end token, and with a smallest length, which forbids it."""
    model = tiny_model("llama")
    free = greedy_continuations(model, PROMPTS, 10)
    end = int(free[1][4])
    ended = greedy_continuations(model, PROMPTS, 10, end_token_id=end)
    without = greedy_continuations(model, PROMPTS, 10, forbidden_token_ids=[end])

    assert ended[1].tolist() == free[1][: free[1].tolist().index(end) + 1].tolist()
    for prompt, row, other in zip(PROMPTS, ended, without, strict=True):
        assert row.tolist() == generated(model, prompt, max_new_tokens=10, eos_token_id=end)
        assert other.tolist() == generated(model, prompt, max_new_tokens=10, min_new_tokens=10, eos_token_id=end)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_drawn_from_whole_computations_one_by_one(kind: str) -> None:
    """Independent value: each token looked up by hand in probabilities computed without cache and batch."""
    model = tiny_model(kind, "forensics")
    settings: dict[str, Any] = {"seed": 5, "temperature": 1.7, "top_p": 0.9}
    found = sampled_continuations(model, PROMPTS, 6, rows_at_once=2, **settings)
    for place, (prompt, row) in enumerate(zip(PROMPTS, found, strict=True)):
        ids, draws = prompt.tolist(), np.random.default_rng([5, place]).random(6)
        for token, draw in zip(row.tolist(), draws, strict=True):
            chances = taken_whole(model, ids) ** (1 / 1.7)
            chances = (chances / chances.sum()).numpy()
            order = sorted(range(VOCABULARY), key=lambda candidate: -chances[candidate])
            num_kept = next(n for n in range(1, VOCABULARY + 1) if chances[order[:n]].sum() >= 0.9)
            kept = sorted(order[:num_kept])
            limit = draw * chances[kept].sum()
            assert token == next(t for n, t in enumerate(kept, 1) if chances[kept[:n]].sum() > limit)
            ids.append(token)
    assert [row.tolist() for row in sampled_continuations(model, PROMPTS, 6, rows_at_once=7, **settings)] == [
        row.tolist() for row in found
    ]
    assert [row.tolist() for row in sampled_continuations(model, PROMPTS, 6, **settings | {"seed": 6})] != [
        row.tolist() for row in found
    ]


def test_evenly_spread_draws_give_each_token_its_share() -> None:
    """Closed form: of 1,000 draws in the middle of equal cells, each token gets 1,000 times its probability."""
    probabilities = torch.tensor([[0.0, 0.5, 0.125, 0.0, 0.375, 0.0]], dtype=torch.float64).expand(1000, -1)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    counts = torch.bincount(drawn_tokens(probabilities, draws), minlength=6)
    assert counts.tolist() == [0, 500, 125, 0, 375, 0]
    # The fewest that reach 0.8 are tokens 1 and 4, drawn 4 : 3; a single one reaches 0.5.
    counts = torch.bincount(drawn_tokens(probabilities, draws, 0.8), minlength=6)
    assert counts.tolist() == [0, 571, 0, 0, 429, 0]
    assert set(drawn_tokens(probabilities, draws, 0.5).tolist()) == {1}
    # The smallest draw does not fall on the impossible token before the first possible one.
    assert drawn_tokens(probabilities[:1], torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def test_the_first_token_is_sampled_in_proportion() -> None:
    """A whole model, 2,000 times: every frequency within 4 standard errors of its probability (seeded)."""
    model = tiny_model("gpt_neox")
    found = sampled_continuations(model, [PROMPTS[0]] * 2000, 1, seed=0, rows_at_once=500)
    chances = taken_whole(model, PROMPTS[0].tolist()).numpy()
    frequencies = np.bincount(np.concatenate(found), minlength=VOCABULARY) / 2000

    assert np.all(np.abs(frequencies - chances) <= 4 * np.sqrt(chances * (1 - chances) / 2000) + 1 / 2000)


def test_a_model_that_drops_its_cache_is_given_everything_again() -> None:
    model = tiny_model("llama")
    expected = [row.tolist() for row in greedy_continuations(model, PROMPTS, 5)]
    forward = model.forward

    def forgetful(**inputs: Any) -> Any:
        answer = forward(**inputs | {"use_cache": False})
        answer.past_key_values = None
        return answer

    model.forward = forgetful
    assert [row.tolist() for row in greedy_continuations(model, PROMPTS, 5)] == expected


def test_impossible_questions_are_errors() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="prompt 2 of 2 is empty"):
        greedy_continuations(model, [PROMPTS[0], PROMPTS[0][:0]], 3)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        sampled_continuations(model, PROMPTS, 3, seed=0, temperature=0)
    with pytest.raises(ValueError, match="do not fit rows of 63 tokens"):
        extractability(model, np.zeros((2, 63), dtype=np.int64))
    assert greedy_continuations(model, [], 3) == sampled_continuations(model, [], 3, seed=0) == []
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="computes NaN after 1 tokens"):
        greedy_continuations(model, PROMPTS, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_a_model_wrote_itself_are_extracted_and_each_changed_token_costs_its_share(kind: str) -> None:
    """Independent value: rows whose continuation is transformers' greedy generate, with tokens changed after the fact.

    The prompt and what was generated do not depend on the truth, so k changed tokens leave exactly 1 - k/32.
    """
    model = tiny_model(kind)
    prompts = np.random.default_rng(7).integers(1, VOCABULARY, (4, 32))
    rows = np.array([[*row, *generated(model, row, max_new_tokens=32, min_new_tokens=32), 5] for row in prompts])
    rows[1, 32] += 1
    rows[2, [40, 50, 63]] += 1
    rows[3, 64] += 1  # beyond what is looked at
    found = extractability(model, rows.astype(np.uint16), end_token_id=0, rows_at_once=3)

    assert found.matching_shares.tolist() == [1, 31 / 32, 29 / 32, 1]
    assert found.extracted.tolist() == [True, False, False, True]


def test_a_row_is_extracted_exactly_if_each_true_token_is_the_most_probable_after_the_true_ones() -> None:
    """Independent value: one forward over the true tokens, no generation; prompt and continuation of other lengths."""
    model = tiny_model("olmo3", "forensics")
    rows = np.random.default_rng(8).integers(1, VOCABULARY, (12, 9))
    for row, follow in zip(rows[:6], greedy_continuations(model, list(rows[:6, :5]), 3), strict=True):
        row[5:8] = follow
    found = extractability(model, rows, num_prompt_tokens=5, num_continued_tokens=3)
    with torch.no_grad():
        likeliest = model(input_ids=torch.from_numpy(rows[:, :8])).logits.argmax(-1)[:, 4:7].numpy()

    assert found.extracted.tolist() == (likeliest == rows[:, 5:8]).all(axis=1).tolist()
    assert found.extracted[:6].all() and not found.extracted.all()


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_each_generated_token_is_the_most_probable_within_its_rounding(kind: str) -> None:
    """Independent value: logits of the same rounded weights in fp32, without cache. Near ties may fall either way."""
    model = tiny_model(kind, "forensics").to(torch.bfloat16)
    found = greedy_continuations(model, PROMPTS, 6)
    model.float()
    for prompt, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(np.concatenate([prompt, row]))[None]).logits[0]
        logits = logits[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.from_numpy(row)[:, None])[:, 0]
        # Logits are below 10, where bf16 has steps of 1/16 or less; the second is 0.2 to 1.7 below on average.
        assert float((logits.amax(dim=1) - chosen).max()) < 0.1


def test_generating_neither_drops_out_nor_changes_the_model() -> None:
    model = tiny_model("gpt_neox", "forensics")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = [row.tolist() for row in greedy_continuations(model, PROMPTS, 3)]
    model.train()
    before = (model.config.to_dict(), model.config._attn_implementation)

    assert [row.tolist() for row in greedy_continuations(model, PROMPTS, 3)] == expected
    assert all(module.training for module in model.modules())
    assert (model.config.to_dict(), model.config._attn_implementation) == before
