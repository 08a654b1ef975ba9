"""What `tokens` found of a run's checkpoint, kept with the run: one file a step, the view `tokens`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_index.errors import Busy, CorruptFile, DiskFull, MissingFile, NotWritable
from data_index.files import exclusive_lock
from data_index.kinds import arrow_schema
from data_index.workspace import Workspace, learn
from forensics.token_answer import UndertrainedTokens


def keep_tokens(workspace: Workspace, found: UndertrainedTokens) -> list[str]:
    """Put the rows in force as the run's tokens at that step, beside those of other steps.

    Returns:
        Why they could not be kept: the answer does not depend on it.
    """
    import pyarrow
    import pyarrow.parquet

    assert found.run is not None
    home, schema = workspace.home(found.run), arrow_schema("tokens")
    table = found.table()
    count = table.num_rows
    table = table.append_column("step", pyarrow.array([found.step] * count, pyarrow.int64()))
    table = table.append_column("indicator_name", pyarrow.array([found.indicator] * count, pyarrow.string()))
    try:
        with exclusive_lock(home.with_name(f".{home.name}.lock"), f"keeping the tokens of {found.run}"):
            there = workspace.learned_files(home, "tokens")
            replaced = [path for path in there if _step_of(path) == found.step]
            if found.verification is None and replaced:
                table = _with_verdicts_of(replaced[0], table)
            learn(home, "tokens", table.select(schema.names).cast(schema), replace_kind=False, in_place_of=replaced)
    except (Busy, DiskFull, NotWritable, CorruptFile, MissingFile) as error:
        return [f"the tokens of {found.run} are not kept: {error}"]
    return []


def _with_verdicts_of(path: Path, table: Any) -> Any:
    """What prompting found before stays known of the same weights."""
    import pyarrow.parquet

    names = ("max_probability", "verified")
    rows = pyarrow.parquet.read_table(path, columns=["token_id", *names], partitioning=None).to_pylist()
    before = {row["token_id"]: row for row in rows}
    ids = table.column("token_id").to_pylist()
    for name in names:
        column = pyarrow.array([before.get(token, {}).get(name) for token in ids], table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _step_of(path: Path) -> int | None:
    """The step of a kept file; each holds one."""
    import pyarrow.parquet

    steps = pyarrow.parquet.read_table(path, columns=["step"], partitioning=None).column("step")
    return steps[0].as_py() if len(steps) else None
