"""Questions about what is kept of tokens: how little each was trained, what it was read in, and how often, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_index.run import Run
from data_index.store import opened_for, readable
from data_index.workspace import Workspace

Row = dict[str, Any]
# What a filter may ask of a row, in SQL.
FILTERS = {
    "candidates": "candidate",
    "verified": "verified",
    "prompted, can be repeated": "NOT verified",
    "known unused": "in_unused_set",
    "never updated": "never_updated",
}


@readable
def token_checkpoints(workspace: Workspace, run: Run) -> list[Row]:
    """One row for each checkpoint whose tokens are kept, in step order: what was found of how many.

    `gap` and `two_percent`: the highest indicator below each of the two cuts; None: there is none.
    """
    return _rows(
        opened_for(workspace, run, "tokens"),
        "SELECT step, any_value(indicator_name) AS indicator_name, count(*) AS num_rows, count(text) AS num_texts, "
        "count(*) FILTER (candidate) AS num_candidates, count(verified) AS num_prompted, "
        "count(*) FILTER (verified) AS num_verified, max(indicator) FILTER (below_gap) AS gap, "
        "max(indicator) FILTER (below_2_percent) AS two_percent FROM tokens GROUP BY step ORDER BY step",
    )


@readable
def token_arrays(workspace: Workspace, run: Run, step: int) -> dict[str, Any]:
    """Columns of every row of a checkpoint that has a rank, by token id: numbers as arrays, masked where null."""
    return _arrays(
        opened_for(workspace, run, "tokens"),
        "SELECT token_id, indicator, rank, max_probability, coalesce(candidate, false) AS candidate, "
        "coalesce(in_unused_set, false) AS in_unused_set, coalesce(verified, false) AS verified, "
        "verified IS NOT NULL AS prompted, category = 'ok' AS ordinary FROM tokens "
        "WHERE step = $step AND (rank IS NOT NULL OR coalesce(in_unused_set, false)) ORDER BY token_id",
        {"step": step},
    )


@readable
def texts_of_tokens(workspace: Workspace, run: Run, step: int, token_ids: Sequence[int]) -> dict[int, str | None]:
    found = opened_for(workspace, run, "tokens").execute(
        "SELECT token_id, text FROM tokens WHERE step = $step AND list_contains($ids::BIGINT[], token_id)",
        {"step": step, "ids": list(token_ids)},
    )
    return dict(found.fetchall())


@readable
def categories_of_tokens(workspace: Workspace, run: Run, step: int) -> dict[str, int]:
    """How many rows of each category, the most first."""
    found = opened_for(workspace, run, "tokens").execute(
        "SELECT category, count(*) FROM tokens WHERE step = $step AND category IS NOT NULL GROUP BY category "
        "ORDER BY 2 DESC, 1",
        {"step": step},
    )
    return dict(found.fetchall())


@readable
def token_table(
    workspace: Workspace, run: Run, step: int, *, categories: Sequence[str] = (), only: str = "", text: str = ""
) -> Any:
    """Rows of a checkpoint as an Arrow table, in the order of their ranks, those without one last.

    Args:
        categories: only these; none: all. only: of FILTERS; "": all.
        text: a part of a token's text, in upper or lower case; a number is an id as well.
    """
    condition = FILTERS[only] if only else "true"
    found = opened_for(workspace, run, "tokens").sql(
        "SELECT rank, token_id, text, category, indicator, max_probability, verified, candidate, in_unused_set, "
        "never_updated, evidence, below_gap, below_2_percent FROM tokens WHERE step = $step "
        f"AND coalesce({condition}, false) "
        "AND (len($categories::VARCHAR[]) = 0 OR list_contains($categories::VARCHAR[], category)) "
        "AND ($text = '' OR contains(lower(text), lower($text)) OR token_id::VARCHAR = $text) "
        "ORDER BY rank NULLS LAST, token_id",
        params={"step": step, "categories": list(categories), "text": text},
    )
    return found.to_arrow_table()


# --- one token -------------------------------------------------------------------------------------------------------


@readable
def rows_of_token(workspace: Workspace, run: Run, token_id: int) -> list[Row]:
    """What is kept of one token at each checkpoint, in step order."""
    return _rows(
        opened_for(workspace, run, "tokens"),
        "SELECT * EXCLUDE (run) FROM tokens WHERE token_id = $token ORDER BY step",
        {"token": token_id},
    )


@readable
def exposures_of_token(workspace: Workspace, run: Run, token_id: int) -> list[Row]:
    """Its counts up to each record, 0 where it had not been seen; no row: nothing was counted."""
    return _rows(
        opened_for(workspace, run, "exposures"),
        "SELECT r.step, coalesce(as_input, 0) AS as_input, coalesce(as_target, 0) AS as_target, first_step, last_step "
        "FROM (SELECT DISTINCT step FROM exposures) r "
        "LEFT JOIN (SELECT * FROM exposures WHERE token_id = $token) e USING (step) ORDER BY r.step",
        {"token": token_id},
    )


@readable
def path_of_token(workspace: Workspace, run: Run, token_id: int) -> list[Row]:
    """step, indicator_name, indicator, distance_to_unused and untrained at each checkpoint, in step order."""
    return _rows(
        opened_for(workspace, run, "token_paths"),
        "SELECT step, indicator_name, indicator, distance_to_unused, untrained FROM token_paths "
        "WHERE token_id = $token ORDER BY step",
        {"token": token_id},
    )


@readable
def origin_of_token(workspace: Workspace, run: Run, token_id: int) -> Row | None:
    """The first documents it was read in, and how often with which tags; None: that is not kept."""
    found = _rows(
        opened_for(workspace, run, "token_origins"),
        "SELECT document_ids, tags, tag_counts FROM token_origins WHERE token_id = $token",
        {"token": token_id},
    )
    return found[0] if found else None


# --- all tokens as arrays --------------------------------------------------------------------------------------------


@readable
def counted_steps(workspace: Workspace, run: Run) -> list[int]:
    """Steps up to which tokens were counted, rising."""
    found = opened_for(workspace, run, "exposures").execute("SELECT DISTINCT step FROM exposures ORDER BY step")
    return [step for (step,) in found.fetchall()]


@readable
def exposure_arrays(workspace: Workspace, run: Run, steps: Sequence[int]) -> dict[str, Any]:
    """step, token_id, as_input, as_target of every token that had been seen by these records, in any order."""
    return _arrays(
        opened_for(workspace, run, "exposures"),
        "SELECT step, token_id, as_input, as_target FROM exposures WHERE list_contains($steps::BIGINT[], step)",
        {"steps": list(steps)},
    )


@readable
def path_arrays(workspace: Workspace, run: Run) -> dict[str, Any]:
    """step, token_id, indicator, untrained of every row and checkpoint that was gone through, in any order."""
    return _arrays(
        opened_for(workspace, run, "token_paths"), "SELECT step, token_id, indicator, untrained FROM token_paths"
    )


@readable
def path_indicator(workspace: Workspace, run: Run) -> str | None:
    """The indicator that paths are of; None: none are kept."""
    found = opened_for(workspace, run, "token_paths").execute("SELECT indicator_name FROM token_paths LIMIT 1")
    row = found.fetchone()
    return row[0] if row else None


def _rows(connection: Any, query: str, asked: dict[str, Any] | None = None) -> list[Row]:
    found = connection.execute(query, asked or {})
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _arrays(connection: Any, query: str, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = connection.execute(query, asked or {}).fetchnumpy()
    return {name: np.ma.asarray(values) for name, values in found.items()}
