"""`tokens --verify`: which tokens a model cannot repeat, kept as it goes, with a base rate beside it."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_index.errors import InvalidRange, OutOfMemory, UnsupportedRecipe
from data_index.token_categories import analyse_tokenizer
from data_index.workspace import Workspace
from forensics import token_verification
from forensics.token_answer import UndertrainedTokens
from forensics.token_prompting import as_prompted, prompting_of
from forensics.token_report import facts, write_report
from forensics.token_verification import Verifying, controls_of
from forensics.undertrained_tokens import tokens
from tests.forensics.test_cli import forensics


class Repeater:
    """A model that repeats the first token behind the shared beginning, but for those it never learned."""

    def __init__(self, chance_of: dict[int, float], vocabulary: int) -> None:
        self.chance_of, self.vocabulary = chance_of, vocabulary
        self.config = SimpleNamespace(max_position_embeddings=4096, rope_parameters={})
        self.rows: Counter[int] = Counter()

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def __call__(self, *, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        if past_key_values is None:
            return SimpleNamespace(past_key_values=Kept())
        if past_key_values.tokens is None:
            past_key_values.tokens = input_ids[:, 0].tolist()
        found = torch.full((len(input_ids), 1, self.vocabulary), 1e-9)
        for n, token in enumerate(past_key_values.tokens):
            self.rows[token] += 1
            found[n, 0, token] = self.chance_of.get(token, 0.95)
            found[n, 0, 65] += 1 - found[n, 0].sum()
        return SimpleNamespace(past_key_values=past_key_values, logits=found.log())


class Kept:
    tokens: list[int] | None = None

    def batch_repeat_interleave(self, _: int) -> None:
        pass


@pytest.fixture
def repeater(tiny: Workspace, monkeypatch: pytest.MonkeyPatch) -> Repeater:
    """In place of the tiny run's model: one that cannot repeat two of its candidates, and one only just."""
    ids = [row["token_id"] for row in tokens("tiny", workspace=tiny).candidates(by="below_2_percent")]
    model = Repeater({ids[0]: 1e-5, ids[2]: 0.0099, ids[3]: 0.0101}, 400)
    monkeypatch.setattr(token_verification, "prompted_model", lambda *_: model)
    return model


def verdicts(found: UndertrainedTokens) -> dict[int, tuple[float, bool]]:
    return {r["token_id"]: (r["max_probability"], r["verified"]) for r in found.rows if r["verified"] is not None}


def test_tokens_that_the_model_cannot_repeat_are_verified(tiny: Workspace, repeater: Repeater) -> None:
    found = tokens("tiny", verify=True, workspace=tiny)
    low = sorted(repeater.chance_of)
    asked = {row["token_id"] for by in ("below_gap", "below_2_percent") for row in found.candidates(by=by)}

    assert set(verdicts(found)) == asked
    assert {token for token, (_, verified) in verdicts(found).items() if verified} == {
        token for token in low if repeater.chance_of[token] < 0.01
    }
    for token, chance in repeater.chance_of.items():
        row = next(row for row in found.rows if row["token_id"] == token)
        assert row["max_probability"] == pytest.approx(chance) == row["probability_repeats"]
        assert row["label"] == ("strong_verified" if chance < 0.001 else "weak_verified")
    counts = found.counts()
    assert counts["below_2_percent_verified"] == 2 and counts["below_2_percent"] == len(
        found.candidates(by="below_2_percent")
    )
    assert found.verification is not None and found.verification.base_rate == (0, 64)


def test_answers_are_kept(tiny: Workspace, repeater: Repeater) -> None:
    first = tokens("tiny", verify=True, workspace=tiny)
    asked = sum(repeater.rows.values())
    again = tokens("tiny", verify=True, workspace=tiny)

    assert again.rows == first.rows and sum(repeater.rows.values()) == asked
    assert first.verification is not None and again.verification is not None
    assert first.verification.num_asked == 3 * (len(verdicts(first)) + 64) and again.verification.num_asked == 0


@pytest.mark.parametrize("other", [{"checkpoint": 15}, {"verify": Verifying(precision="bf16")}], ids=str)
def test_other_weights_and_another_precision_are_asked_anew(
    tiny: Workspace, repeater: Repeater, other: dict[str, Any]
) -> None:
    tokens("tiny", verify=True, workspace=tiny)
    found = tokens("tiny", **{"verify": True} | other, workspace=tiny)

    assert found.verification is not None
    assert found.verification.num_asked == 3 * (len(verdicts(found)) + len(found.verification.controls))


def test_interrupted_it_goes_on(tiny: Workspace, repeater: Repeater) -> None:
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens("tiny", verify=True, workspace=tiny, progress=interrupt)
    before = sum(repeater.rows.values()) // 3
    rest = tokens("tiny", verify=True, workspace=tiny, progress=lambda done, total: calls.append((done, total)))

    assert rest.verification is not None
    assert before > 64 and rest.verification.num_asked == 3 * (len(verdicts(rest)) + 64) - before
    assert calls[3][1] - calls[3][0] == calls[-1][1] == calls[-1][0]  # what was left is all that was asked
    assert set(repeater.rows.values()) == {9}  # no token was asked twice: three places in three prompts


def test_a_damaged_file_of_answers_is_asked_anew(tiny: Workspace, repeater: Repeater) -> None:
    first = tokens("tiny", verify=True, workspace=tiny)
    (file,) = (tiny.home("tiny") / "verifications").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-40])

    assert tokens("tiny", verify=True, workspace=tiny).rows == first.rows


def test_settled_tokens_are_asked_no_further(tiny: Workspace, repeater: Repeater) -> None:
    """The verified set is the same; labels that hang on other prompts are not told."""
    found = tokens("tiny", verify=Verifying(every_prompt=False), workspace=tiny)
    asked = found.verification
    whole = tokens("tiny", verify=True, workspace=tiny)

    assert {t for t, (_, v) in verdicts(found).items() if v} == {t for t, (_, v) in verdicts(whole).items() if v}
    assert asked is not None and asked.num_asked == len(verdicts(found)) + 64 + 2 * 2
    just = next(row for row in found.rows if row["max_probability"] == pytest.approx(0.0101))
    assert just["label"] is None and just["probability_input_output"] is None


def test_what_prompting_found_stays_known(tiny: Workspace, repeater: Repeater) -> None:
    from forensics.lookup import sql

    found = tokens("tiny", verify=True, workspace=tiny)
    assert all(row["verified"] is None for row in tokens("tiny", workspace=tiny).rows)
    kept = sql("select token_id, max_probability, verified from tokens where verified is not null", workspace=tiny)

    assert {r["token_id"]: (r["max_probability"], r["verified"]) for r in kept.to_pylist()} == verdicts(found)


def test_controls_lie_above_both_cuts(tiny_shared: Workspace) -> None:
    found = tokens("tiny", indicator="input_norm", workspace=tiny_shared)
    rows = {row["token_id"]: row for row in found.rows}
    chosen = [rows[token] for token in controls_of(found, 10)]

    assert len(chosen) == 10 and all(r["category"] == "ok" and not r["below_2_percent"] for r in chosen)
    ranks = [row["rank"] for row in chosen]
    assert ranks == sorted(ranks) and max(np.diff(ranks)) < 3 * min(np.diff(ranks)) + 30


def test_the_tiny_run_says_how_little_it_means(tiny_shared: Workspace, tmp_path: Path) -> None:
    """Its own model, twenty steps old, can repeat nothing: the base rate tells."""
    found = tokens("tiny", verify=True, workspace=tiny_shared)
    told = dict(facts(found))

    assert found.verification is not None and found.verification.base_rate == (64, 64)
    assert told["base rate"].startswith("64 of 64") and "94.4% to 100.0%" in told["base rate"]
    notes = [value for name, value in facts(found) if name == "note"]
    assert any("says little" in note for note in notes) and any("trained on" in note for note in notes)
    again = facts(tokens("tiny", verify=True, workspace=tiny_shared))  # answered from what is kept
    assert [value for name, value in again if name == "note"] == notes
    # All candidates fail: the published reports would list them down to the last.
    last = max(r["indicator"] for r in found.rows if r["category"] == "ok" and r["verified"] is not None)
    assert told["published threshold for showing"] == f"{last:.6g}"
    written = write_report(found, tmp_path / "r.html")
    assert "weak_verified" in written[0].read_text()


def test_the_command_verifies_and_plans(tiny_shared: Workspace) -> None:
    ask = ("tokens", "tiny", "--checkpoint", "5", "--verify", "--format", "json")
    plan = json.loads(forensics(tiny_shared, *ask, "--plan").stdout)[0]
    rows = json.loads(forensics(tiny_shared, *ask).stdout)
    after = json.loads(forensics(tiny_shared, *ask, "--plan").stdout)[0]

    assert plan["candidates"] == sum(row["verified"] is not None for row in rows) and plan["prompt_tokens"] > 0
    assert plan["controls"] == 64 and plan["bytes_to_fetch"] == 0 and after["prompt_tokens"] == 0
    assert {"token_id", "text", "category", "indicator", "rank", "max_probability", "verified"} <= set(rows[0])


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidRange, match="fp32, bf16"):
        Verifying(precision="fp8")


def test_places_for_fewer_tokens_are_refused(tiny: Workspace, repeater: Repeater) -> None:
    repeater.config = SimpleNamespace(max_position_embeddings=100)
    with pytest.raises(UnsupportedRecipe, match="the model places for 100"):
        tokens("tiny", verify=True, workspace=tiny)


def test_a_device_that_is_too_small_is_said(
    tiny: Workspace, repeater: Repeater, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Repeater, "__call__", lambda self, **_: full())
    with pytest.raises(OutOfMemory, match=r"does not hold tiny@20 in fp32: take --precision bf16.*no room"):
        tokens("tiny", verify=True, workspace=tiny)


def test_what_says_nothing_of_its_shape_cannot_be_verified(tiny: Workspace) -> None:
    run = tiny.run("tiny")
    folder = str(tiny.checkpoint(run, 20).location)
    for name in (folder, f"{folder}/model.safetensors"):
        assert tokens(name, tokenizer=run.tokenizer, workspace=tiny).rows
        with pytest.raises(UnsupportedRecipe, match="no config.json"):
            tokens(name, tokenizer=run.tokenizer, verify=True, workspace=tiny)
        done = forensics(tiny, "tokens", name, "--tokenizer", str(run.tokenizer), "--verify", "--plan")
        assert done.returncode == 1 and "no config.json" in done.stderr


def test_prompts_begin_as_the_tokenizer_begins_texts() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )

    assert as_prompted(tokenizer, "a b") == [0, 2, 3]


def test_a_tokenizer_that_puts_a_space_before_texts_makes_prompts() -> None:
    """The space stands before the prompt, not before the token in it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *map(chr, range(33, 127)), "«", "»", "qz"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("q", "z")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    analysis = analyse_tokenizer(tokenizer)
    prompting = prompting_of(tokenizer, analysis)

    assert analysis.leading_space and prompting.placeholder == "qz"
    for prompt in prompting.prompts:
        text = tokenizer.decode(prompt.for_tokens(np.array([vocabulary["w"]]))[0].tolist())
        assert prompt.token_ids[0] == vocabulary["▁"] and not text.startswith(" ")
        assert text.count("qz") == 0 and "Ġ" not in text and "▁" not in text
    assert {prompt.name: int(prompt.is_place.sum()) for prompt in prompting.prompts}["repeats"] == 101
