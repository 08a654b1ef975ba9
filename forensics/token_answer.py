"""What `tokens` answers: one row a token, ranked by how little it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.token_categories import Token, TokenizerAnalysis
from forensics.token_verdicts import VERDICT_COLUMNS, Verification
from forensics.unused_set import ROWS_OF_ZEROS, UnusedSet

if TYPE_CHECKING:
    from probes.indicator_trust import Gap, Trust

# Of a row, before the indicators by name.
COLUMNS = (
    *("token_id", "text", "category", "indicator", "rank", "max_probability", "verified", "candidate", "below_gap"),
    *("below_2_percent", "in_unused_set", "never_updated", "evidence", "encoding", "byte_type", "piece"),
    "encoded_again",
    *VERDICT_COLUMNS,
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UndertrainedTokens:
    """The answer for one model.

    Attributes:
        indicator: the main one; `reason` says why it is trusted.
        values: every indicator by name, float32 of shape [rows of the matrix].
        trust: by name.
        gap: in the main indicator's values; None: no cut but the published one.
        published_cut: the 2nd percentile of the main indicator over tokens of the category OK.
        rows: one a token id, COLUMNS and the indicators; in the order of `rank`, those without one last, by id.
        tied: one matrix reads and predicts.
        verification: what prompting found; None: the model was not prompted.
    """

    label: str
    run: str | None
    step: int | None
    analysis: TokenizerAnalysis
    unused: UnusedSet
    indicator: str
    reason: str
    values: Mapping[str, np.ndarray]
    trust: Mapping[str, Trust]
    gap: Gap | None
    published_cut: float
    rows: tuple[Row, ...]
    tied: bool
    shape: tuple[int, int]
    num_bytes: int
    verification: Verification | None = None
    messages: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return [*COLUMNS, *self.values]

    def candidates(self, *, by: str = "candidate") -> list[Row]:
        """Rows of tokens that encode to themselves and are suspicious, lowest first; what verification prompts with.

        Args:
            by: `candidate` (below the gap; where there is none, the published 2 %; rows of zeros, which have no
                direction and so no distance, always), `below_gap` or `below_2_percent`.
        """
        return [row for row in self.rows if row["rank"] is not None and row[by]]

    def counts(self) -> dict[str, int]:
        """Candidates by both cuts, with bytes and specials and without; of them, verified ones, where that was asked.

        And rows never updated, where that is known.
        """
        found = {}
        for name in ("below_gap", "below_2_percent"):
            rows = self.candidates(by=name)
            found[name] = len(rows)
            found[f"{name}_without_bytes_and_specials"] = sum(row["category"] == "ok" for row in rows)
            if self.verification is not None:
                verified = [row for row in rows if row["verified"]]
                found[f"{name}_verified"] = len(verified)
                found[f"{name}_verified_without_bytes_and_specials"] = sum(r["category"] == "ok" for r in verified)
        never = [row for row in self.rows if row["never_updated"]]
        return found | ({"never_updated": len(never)} if self.unused.never_updated is not None else {})

    def table(self) -> Any:
        """All rows as an Arrow table."""
        import pyarrow

        schema = pyarrow.schema([(name, _arrow_type(name)) for name in self.columns])
        return pyarrow.Table.from_pylist(list(self.rows), schema=schema)

    def with_verification(self, verification: Verification) -> UndertrainedTokens:
        """The answer with what prompting found; rows of tokens that were not candidates keep nulls."""
        verdicts = verification.candidates
        rows = tuple(
            row | verdicts[row["token_id"]].columns() if row["token_id"] in verdicts else row for row in self.rows
        )
        return replace(self, rows=rows, verification=verification)


def for_people(analysis: TokenizerAnalysis, row: Row) -> Row:
    """The row with bytes written as bytes, where its text is no whole character."""
    text = row["text"]
    return row if text is None or "\ufffd" not in text else row | {"text": analysis.written(row["token_id"])}


def token_rows(
    analysis: TokenizerAnalysis,
    unused: UnusedSet,
    main: str,
    values: Mapping[str, np.ndarray],
    gap: Gap | None,
    cut: float,
    own: np.ndarray,
) -> tuple[Row, ...]:
    """One a row of the matrix; rows beyond the tokenizer are there without a text."""
    of_main = values[main]
    order = own[np.lexsort((own, of_main[own]))]
    rank = {token: place for place, token in enumerate(order.tolist(), 1)}
    low = of_main <= (gap.cut if gap else -np.inf)
    lowest = of_main <= cut
    evidence, chosen = unused.evidence_by_token(), set(unused.token_ids.tolist())
    blank = {token for token, kinds in evidence.items() if ROWS_OF_ZEROS in kinds}
    never = set(unused.never_updated.tolist()) if unused.never_updated is not None else None
    lists = {name: of_rows.tolist() for name, of_rows in values.items()}
    rows = []
    for token in range(len(of_main)):
        known = analysis.tokens[token] if token < len(analysis.tokens) else None
        row: Row = {
            "token_id": token,
            "indicator": lists[main][token],
            "rank": rank.get(token),
            "max_probability": None,
            "verified": None,
            "candidate": token in rank and (token in blank or bool(low[token] if gap else lowest[token])),
            "below_gap": bool(low[token]) if gap else None,
            "below_2_percent": bool(lowest[token]),
            "in_unused_set": token in chosen,
            "never_updated": token in never if never is not None else None,
            "evidence": evidence.get(token, []),
        }
        row |= _of_tokenizer(known) | dict.fromkeys(VERDICT_COLUMNS)
        rows.append(row | {name: of_rows[token] for name, of_rows in lists.items()})
    rows.sort(key=lambda row: (row["rank"] is None, row["rank"] or row["token_id"]))
    return tuple({name: row[name] for name in (*COLUMNS, *values)} for row in rows)


def _of_tokenizer(token: Token | None) -> Row:
    if token is None:
        return {
            "text": None,
            "category": "no_token",
            "encoding": "NONE",
            "byte_type": None,
            "piece": None,
            "encoded_again": [],
        }
    return {
        "text": token.text if token.piece is not None else None,
        "category": token.category,
        "encoding": token.encoding,
        "byte_type": token.byte_type,
        "piece": token.piece,
        "encoded_again": list(token.encoded_again),
    }


def _arrow_type(name: str) -> Any:
    import pyarrow

    if name in ("token_id", "rank"):
        return pyarrow.int64()
    if name in ("text", "category", "encoding", "byte_type", "piece", "label", "said"):
        return pyarrow.string()
    if name in ("verified", "candidate", "below_gap", "below_2_percent", "in_unused_set", "never_updated"):
        return pyarrow.bool_()
    lists = {"evidence": pyarrow.list_(pyarrow.string()), "encoded_again": pyarrow.list_(pyarrow.int64())}
    return lists.get(name, pyarrow.float64())
