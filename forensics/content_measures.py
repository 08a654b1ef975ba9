"""Numbers that say how a row's content differs from the run's: each with the side on which it is strange."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probes.text_content import byte_entropy, odd_character_share, script_surprise, scripts
from probes.token_content import (
    MIN_REPEATS,
    TokenStatistics,
    ngram_hashes,
    repeated_share,
    statistics_of,
    token_entropy,
)

RAREST_SHARE = 0.01
FAR_SHARE = 0.005

Unit = Literal["share", "bits", "count", "yes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """
    Attributes:
        says: one line for people, `{value}` standing for the row's.
        side: on which side of the run's rows it is strange.
        limit: what it must exceed besides, so that rows which nobody would call strange are not.
        fixed: the limit alone decides, whatever the run's rows are like.
    """

    name: str
    says: str
    unit: Unit
    side: Literal["high", "low"] = "high"
    limit: float | None = None
    fixed: bool = False

    @property
    def heading(self) -> str:
        return self.says.replace("{value}", "…")

    def threshold(self, values: np.ndarray) -> float | None:
        """What a value must exceed, or fall below, so that at most `FAR_SHARE` of these do; None where none is known.

        Args:
            values: of the rows that stand for the run, NaN where not known.
        """
        if self.fixed:
            return self.limit
        known = known_values(values)
        if not len(known):
            return None
        if self.side == "low":
            return float(np.quantile(known, FAR_SHARE, method="lower"))
        far = float(np.quantile(known, 1 - FAR_SHARE, method="higher"))
        return far if self.limit is None else max(far, self.limit)

    def flags(self, values: np.ndarray, threshold: float | None) -> np.ndarray:
        """1 where a value is strange, 0 where not, NaN where it is not known; fp64."""
        if threshold is None:
            return np.where(np.isnan(values), np.nan, 0.0)
        return np.where(np.isnan(values), np.nan, values < threshold if self.side == "low" else values > threshold)

    def shown(self, value: float) -> str:
        shown = {"share": f"{value:.1%}", "bits": f"{value:.2f} bits", "count": f"{value:,.0f}", "yes": f"{value:.0f}"}
        return shown[self.unit]


def known_values(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


MEASURES = (
    Measure(
        name="repetition",
        says="a piece of up to 13 tokens stands {value} times in a row (OLMo 2 filters from 32)",
        unit="count",
        limit=MIN_REPEATS - 1,
        fixed=True,
    ),
    Measure(name="repeated_text", says="{value} of its 8-grams stood in the row before", unit="share"),
    Measure(name="shared_text", says="{value} of its 8-grams stand in other rows too", unit="share"),
    Measure(name="duplicate", says="another instance has the same tokens", unit="yes", limit=0.5, fixed=True),
    Measure(name="read_before", says="the run had read this instance before", unit="yes", limit=0.5, fixed=True),
    Measure(name="rare_tokens", says="{value} of its tokens are of the rarest 1 % that the run reads", unit="share"),
    Measure(name="unlikely_tokens", says="its tokens carry {value} each by the run's token counts", unit="bits"),
    Measure(name="random_tokens", says="its tokens are nearly all different: entropy {value}", unit="bits"),
    Measure(name="few_distinct_tokens", says="it has few different tokens: entropy {value}", unit="bits", side="low"),
    Measure(
        name="unusual_order",
        says="its tokens are foretold by the token before {value} better than alone: another order than the run's",
        unit="bits",
        side="low",
    ),
    Measure(name="binary_text", says="{value} of its characters are none that text has", unit="share", limit=0.01),
    Measure(name="byte_entropy", says="its bytes are spread evenly: entropy {value}", unit="bits"),
    Measure(name="script_shift", says="its letters' scripts are strange to the run: {value} a letter", unit="bits"),
    Measure(name="many_documents", says="{value} documents have a piece in it", unit="count"),
    Measure(name="short_document", says="its shortest document has {value} tokens", unit="count", side="low"),
    Measure(name="long_document", says="its longest document has {value} tokens", unit="count"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Content:
    """Rows as they are measured, each instance once.

    Attributes:
        rows: token ids without padding.
        texts: bytes; None without a tokenizer.
        ngrams: hashes of each row's 8-grams, in order.
    """

    instances: np.ndarray
    rows: Sequence[np.ndarray]
    texts: Sequence[bytes] | None
    ngrams: Sequence[np.ndarray]
    characters: Sequence[Counter[str]] | None
    digests: Sequence[bytes]


def content_of(instances: np.ndarray, rows: Sequence[np.ndarray], texts: Sequence[bytes] | None) -> Content:
    return Content(
        instances=instances,
        rows=rows,
        texts=texts,
        ngrams=[ngram_hashes(row) for row in rows],
        characters=None if texts is None else [Counter(text.decode("utf-8", errors="replace")) for text in texts],
        digests=[hashlib.sha256(np.ascontiguousarray(row, dtype="<i8").tobytes()).digest() for row in rows],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTable:
    """In how many rows something stands: n-grams by their hashes, whole rows by their digests."""

    hashes: np.ndarray
    num_rows: np.ndarray
    digests: Counter[bytes]

    def rows_with(self, hashes: np.ndarray) -> np.ndarray:
        """How many rows hold each n-gram, int64."""
        if not len(self.hashes):
            return np.zeros(len(hashes), dtype=np.int64)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.num_rows[places], 0)


def table_of(content: Content, chosen: np.ndarray) -> RowTable:
    """
    Args:
        chosen: bool of shape [rows]; the others are left out.
    """
    taken = np.flatnonzero(chosen).tolist()
    each = [np.unique(content.ngrams[n]) for n in taken]
    hashes, num_rows = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *each]), return_counts=True)
    return RowTable(hashes=hashes, num_rows=num_rows, digests=Counter(content.digests[n] for n in taken))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseCounts:
    """What the rows that stand for a run hold, all together.

    Attributes:
        digests: of each row, by instance.
        rare_bits: the surprise that `RAREST_SHARE` of the tokens exceed, or fewer.
    """

    digests: Mapping[int, bytes]
    tokens: TokenStatistics
    rare_bits: float
    scripts: Counter[str]
    table: RowTable

    def measure(self, content: Content) -> dict[str, np.ndarray]:
        """Measures by name, fp64 of shape [rows]; what a row itself added to the counts is taken out first.

        Rows that are measured together count as other rows for each other.
        """
        named = zip(content.instances.tolist(), content.digests, strict=True)
        counted = np.array([self.digests.get(instance) == digest for instance, digest in named], dtype=bool)
        beside = table_of(content, ~counted)
        columns = [
            self._of_tokens(row, bool(known)) | self._of_others(content, n, bool(known), beside)
            for n, (row, known) in enumerate(zip(content.rows, counted, strict=True))
        ]
        if content.texts is not None and content.characters is not None:
            for n, (text, characters) in enumerate(zip(content.texts, content.characters, strict=True)):
                columns[n] |= self._of_text(text, characters, bool(counted[n]))
        return {name: np.array([column[name] for column in columns]) for name in (columns[0] if columns else ())}

    def _of_tokens(self, row: np.ndarray, counted: bool) -> dict[str, float]:
        entropy = token_entropy(row)
        return {
            "rare_tokens": self.tokens.rare_share(row, self.rare_bits, counted=counted),
            "unlikely_tokens": self.tokens.mean_surprise(row, counted=counted),
            "random_tokens": entropy,
            "few_distinct_tokens": entropy,
            "unusual_order": self.tokens.order_gain(row, counted=counted),
        }

    def _of_others(self, content: Content, n: int, counted: bool, beside: RowTable) -> dict[str, float]:
        ngrams, digest = content.ngrams[n], content.digests[n]
        others = self.table.rows_with(ngrams) + beside.rows_with(ngrams) - 1  # the row itself is in one of them
        return {
            "repeated_text": repeated_share(ngrams),
            "shared_text": float((others > 0).mean()) if len(ngrams) else 0.0,
            "duplicate": float(self.table.digests[digest] + beside.digests[digest] > 1),
        }

    def _of_text(self, text: bytes, characters: Mapping[str, int], counted: bool) -> dict[str, float]:
        own = scripts(characters)
        return {
            "binary_text": odd_character_share(characters),
            "byte_entropy": byte_entropy(text),
            # Rows of one script differ by what one row less in the counts does, and that is no difference.
            "script_shift": round(script_surprise(own, self.scripts - own if counted else self.scripts), 2),
        }


def base_counts(content: Content, vocabulary: int) -> BaseCounts:
    tokens = statistics_of(content.rows, vocabulary)
    counted: Counter[str] = Counter()
    for characters in content.characters or ():
        counted += scripts(characters)
    return BaseCounts(
        digests=dict(zip(content.instances.tolist(), content.digests, strict=True)),
        tokens=tokens,
        rare_bits=tokens.surprise_exceeded_by(RAREST_SHARE),
        scripts=counted,
        table=table_of(content, np.ones(len(content.rows), dtype=bool)),
    )
