"""The published categories on tokenizers small enough to know every answer; real ones: tests/published."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data_index.errors import CorruptFile, UnsupportedRecipe
from data_index.gguf_tokenizer import tokenizer_of_gguf
from data_index.spelling import BYTE_OF_CHARACTER
from data_index.token_categories import TokenizerAnalysis, analyse_tokenizer


def byte_level() -> Tokenizer:
    """All bytes, two merges (Ġt, Ġte), a piece that no merge makes, half a character, a special token."""
    letters = [char for char, _ in sorted(BYTE_OF_CHARACTER.items(), key=lambda item: item[1])]
    vocabulary = {piece: token for token, piece in enumerate([*letters, "Ġt", "Ġte", "zz", "ðŁ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("Ġt", "e"), ("ð", "Ł")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def sentencepiece(*, leading_space: bool) -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "t", "e", "s", "é", "te", "▁te", "«", "▁«", "▁t"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    merges = [("t", "e"), ("▁", "te"), ("▁", "«")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if leading_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer, tokenizer.decoder = replace, decoders.Sequence(steps)
    return tokenizer


def by_piece(analysis: TokenizerAnalysis) -> dict[str | None, tuple[str, str]]:
    return {token.piece: (token.category, token.encoding) for token in analysis.tokens}


def test_byte_level_pieces_fall_into_their_categories() -> None:
    found = analyse_tokenizer(byte_level())
    pieces = by_piece(found)

    assert found.byte_level and not found.leading_space
    assert pieces["a"] == ("single_byte", "OK")
    assert pieces["Ã"] == ("single_byte", "UNDECODEABLE")
    assert pieces["À"] == ("unused_byte", "UNDECODEABLE")
    assert pieces["Ġte"] == ("ok", "OK")
    assert pieces["zz"] == ("unreachable", "UNREACHABLE_MULTI_TOKEN")
    assert pieces["ðŁ"] == ("partial_utf8", "UNDECODEABLE")
    assert pieces["<|end|>"] == ("special", "OK")
    counts = found.counts()
    assert (counts["bytes"], counts["unused_byte"], counts["unreachable"], counts["special"]) == (256, 13, 1, 1)


def test_what_is_no_whole_character_is_written_as_bytes() -> None:
    found = analyse_tokenizer(byte_level())
    written = {token.piece: found.written(token.token_id) for token in found.tokens}

    assert written["a"] == "a" and written["Ġte"] == " te" and written["<|end|>"] == "<|end|>"
    assert written["À"] == "<0xC0>" and written["ðŁ"] == "<0xF0><0x9F>"
    assert found.written(10_000) is None


def test_bytes_have_their_types() -> None:
    types = {token.byte: token.byte_type for token in analyse_tokenizer(byte_level()).tokens if token.byte is not None}

    assert types[0x41] == "ascii" and types[0x80] == "utf8" and types[0xF4] == "utf8"
    assert {byte for byte, kind in types.items() if kind == "unused_utf8"} == {0xC0, 0xC1, *range(0xF5, 0x100)}


def test_what_an_unreachable_token_encodes_to_is_kept() -> None:
    token = next(token for token in analyse_tokenizer(byte_level()).tokens if token.piece == "zz")

    assert token.encoded_again == (BYTE_OF_CHARACTER["z"],) * 2 and not token.encodes_to_itself


def test_tokens_with_a_role_are_ok_special() -> None:
    tokenizer = byte_level()
    end = tokenizer.token_to_id("<|end|>")

    assert analyse_tokenizer(tokenizer, {end}).tokens[end].encoding == "OK_SPECIAL"


def test_a_bracketed_name_that_text_cannot_reach_is_unreachable_special() -> None:
    tokenizer = byte_level()
    vocabulary = tokenizer.get_vocab(with_added_tokens=False) | {"[abc]": tokenizer.get_vocab_size()}
    del vocabulary["zz"]
    again = Tokenizer(models.BPE(vocabulary, []))
    again.pre_tokenizer, again.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    found = by_piece(analyse_tokenizer(again))

    assert found["[abc]"] == ("special", "UNREACHABLE_SPECIAL")
    assert found[None] == ("no_token", "NONE"), "ids that the vocabulary leaves out are rows of the matrix all the same"


def test_a_tokenizer_that_puts_a_space_first_is_judged_behind_a_prefix() -> None:
    """Without the prefix, no piece in the middle of a word would come back."""
    found = analyse_tokenizer(sentencepiece(leading_space=True))
    pieces = by_piece(found)

    assert found.leading_space and not found.byte_level
    assert pieces["te"] == ("ok", "OK") and pieces["▁te"] == ("ok", "OK")
    assert pieces["s"] == ("single_byte", "OK") and pieces["é"] == ("ok", "OK")
    assert pieces["<0x41>"][0] == "single_byte" and pieces["<0xFF>"] == ("unused_byte", "UNDECODEABLE")
    assert pieces["▁t"] == ("unreachable", "UNREACHABLE_MULTI_TOKEN")


def test_where_the_published_prefix_cannot_be_spelled_another_serves() -> None:
    pieces = ["<unk>", "▁", "▁te", "st", "te", ";", "▁;"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    found = analyse_tokenizer(tokenizer)

    assert found.leading_space and by_piece(found)["st"] == by_piece(found)["te"] == ("ok", "OK")
    assert by_piece(found)["▁te"] == ("ok", "OK")


def test_one_that_puts_none_first_is_judged_as_it_is() -> None:
    found = analyse_tokenizer(sentencepiece(leading_space=False))

    assert not found.leading_space and by_piece(found)["te"] == ("ok", "OK")


def test_a_tokenizer_that_does_not_spell_is_refused() -> None:
    with pytest.raises(UnsupportedRecipe, match="spells 'test'"):
        analyse_tokenizer(Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]")))


def test_metadata_of_gguf_make_the_same_tokenizer() -> None:
    ours = byte_level()
    pieces = [ours.id_to_token(token) for token in range(ours.get_vocab_size())]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if piece == "<|end|>" else 1 for piece in pieces],
        "tokenizer.ggml.merges": ["Ġ t", "Ġt e", "ð Ł"],
        "tokenizer.ggml.eos_token_id": len(pieces) - 1,
    }
    made = tokenizer_of_gguf(metadata, "it")
    again, expected = analyse_tokenizer(made.tokenizer), analyse_tokenizer(ours)

    assert again == expected and made.special_ids == {len(pieces) - 1} and made.message is None
    strange = tokenizer_of_gguf(metadata | {"tokenizer.ggml.pre": "strange"}, "it").message
    assert strange and "strange" in strange


def test_a_sentencepiece_of_gguf_joins_by_score() -> None:
    pieces = ["<unk>", "▁", "t", "e", "s", "te", "▁te", "es", "«", "▁«"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -9.0, -4.0],
        "tokenizer.ggml.token_type": [2, *[1] * 9],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    found = tokenizer_of_gguf(metadata, "it").tokenizer

    assert found.encode("tes").tokens == ["▁te", "s"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": "a"}, "no list"),
        ({"tokenizer.ggml.token_type": [1]}, "no list of the right length"),
        ({"tokenizer.ggml.merges": ["a b c", "q"]}, "make no tokenizer"),
    ],
)
def test_a_tokenizer_of_gguf_that_does_not_fit_together_is_refused(change: dict[str, object], said: str) -> None:
    whole = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []}

    with pytest.raises(CorruptFile, match=said):
        tokenizer_of_gguf(whole | change, "it")


@pytest.mark.parametrize(
    ("told", "begun"),
    [
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({}, False),
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
    ],
    ids=str,
)
def test_texts_begin_as_the_gguf_file_says(told: dict[str, object], begun: bool) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "<s>"],
        "tokenizer.ggml.token_type": [1, 1, 3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 2,
    }
    tokenizer = tokenizer_of_gguf(metadata | told, "m.gguf").tokenizer

    assert tokenizer.encode("ab").ids == ([2, 0, 1] if begun else [0, 1])
    assert tokenizer.encode("ab", add_special_tokens=False).ids == [0, 1]
