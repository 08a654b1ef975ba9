"""The tokenizer that a GGUF file carries in its metadata, as the library `tokenizers` knows it.

Source: ggml-org/llama.cpp src/llama-vocab.cpp (the `pre` names and their patterns); transformers 5.23
integrations/ggml.py (merges from scores)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_index.errors import CorruptFile, MissingFile, UnsupportedRecipe
from data_index.spelling import MAX_TOKENS

_CONTROL, _USER_DEFINED = 3, 4
_ROLES = ("bos", "eos", "unknown", "padding", "seperator", "separator", "mask", "cls", "eot", "eom")
_DIGITS_ALONE = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
_BEGUN = {
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
}  # begin texts with a token of their own, if nothing else is said
_AS_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GgufTokenizer:
    """
    Attributes:
        special_ids: tokens with a role.
        message: what of it is not known for certain.
    """

    tokenizer: Any
    special_ids: frozenset[int]
    message: str | None = None


def tokenizer_of_gguf(metadata: Mapping[str, Any], source: object) -> GgufTokenizer:
    """
    Raises:
        MissingFile: the file carries no tokenizer.
        CorruptFile: its parts do not fit together.
        UnsupportedRecipe: a kind of tokenizer that is not built here.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise MissingFile(f"{source} carries no tokenizer: put its tokenizer.json beside it")
    pieces = _list_of(metadata, "tokens", str, source)
    if len(set(pieces)) != len(pieces) or not 0 < len(pieces) <= MAX_TOKENS:
        raise CorruptFile(f"{source}: its tokenizer has {len(pieces):,} tokens, some of them twice or none at all")
    types = _list_of(metadata, "token_type", int, source, like=pieces)
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    message = None
    try:
        if model == "gpt2":
            tokenizer, message = _byte_level(metadata, vocabulary, source)
        elif model == "llama":
            tokenizer = _sentencepiece(metadata, pieces, vocabulary, source)
        else:
            raise UnsupportedRecipe(
                f"{source}: tokenizers of the kind {str(model)[:40]!r} are not built from GGUF (gpt2 and llama are): "
                "put its tokenizer.json beside it"
            )
        _add_tokens(tokenizer, pieces, types)
        _begin_with(tokenizer, metadata, pieces)
    except (UnsupportedRecipe, CorruptFile):
        raise
    except Exception as error:  # the library raises bare Exception
        raise CorruptFile(f"{source}: its parts make no tokenizer ({error})") from error
    roles = (metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES)
    return GgufTokenizer(
        tokenizer=tokenizer,
        special_ids=frozenset(token for token in roles if isinstance(token, int)),
        message=message,
    )


def _list_of(
    metadata: Mapping[str, Any], name: str, kind: type, source: object, like: Sequence[Any] | None = None
) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}", [] if like is None else [1] * len(like))
    fits = isinstance(values, list) and all(isinstance(value, kind) for value in values)
    if not fits or (like is not None and len(values) != len(like)):
        raise CorruptFile(f"{source}: tokenizer.ggml.{name} is no list of the right length and kind")
    return list(values)


def _byte_level(metadata: Mapping[str, Any], vocabulary: dict[str, int], source: object) -> tuple[Any, str | None]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in _list_of(metadata, "merges", str, source)]
    pre = str(metadata.get("tokenizer.ggml.pre", "default"))
    whole_words_first = pre in _PATTERNS and _PATTERNS[pre] == _LLAMA3
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words_first))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _PATTERNS)
    if pre in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in _DIGITS_ALONE:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    known = pre in _PATTERNS or pre in _DIGITS_ALONE or pre in _AS_GPT2
    unknown = f"how {source} splits text before merging ({pre[:40]!r}) is not known here; it is split as GPT-2 does"
    return tokenizer, None if known else unknown


def _sentencepiece(
    metadata: Mapping[str, Any], pieces: Sequence[str], vocabulary: dict[str, int], source: object
) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _list_of(metadata, "scores", float, source, like=pieces)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(pieces):
        raise CorruptFile(f"{source}: its tokenizer has no token {unknown!r:.40}")
    merges = _merges_by_score(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=pieces[unknown], fuse_unk=True, byte_fallback="<0x00>" in vocabulary)
    )
    space_first = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if space_first else replaced
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_first else steps)
    return tokenizer


def _merges_by_score(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way in which a piece is two others, pieces of higher score first: SentencePiece joins in that order."""
    found: list[tuple[float, tuple[int, int], tuple[str, str]]] = []
    for piece, token in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[token], (vocabulary[left], vocabulary[right]), (left, right)))
    return [pair for _, _, pair in sorted(found)]


def _add_tokens(tokenizer: Any, pieces: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    for number, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        named = [piece for piece, kind in zip(pieces, types, strict=True) if kind == number]
        tokens = [AddedToken(piece, special=special, normalized=False) for piece in named]
        tokenizer.add_special_tokens(tokens) if special else tokenizer.add_tokens(tokens)


def _begin_with(tokenizer: Any, metadata: Mapping[str, Any], pieces: Sequence[str]) -> None:
    """Put the begin token before every text that is encoded with special tokens, where the model was prompted so."""
    from tokenizers import processors

    usual = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") in _BEGUN
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", usual) and isinstance(begin, int) and 0 <= begin < len(pieces):
        piece = pieces[begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[piece, "$A"], pair=[piece, "$A", piece, "$B"], special_tokens=[(piece, begin)]
        )
