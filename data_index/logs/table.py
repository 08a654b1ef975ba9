"""Points of logs as a table of the kind `metrics`: canonical names beside original ones, repeated steps as attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_index.logs.points import Points
from data_index.metric_names import canonical_names


def metrics_table(logs: Sequence[tuple[str, Sequence[Points]]], *, unclear: Iterable[str]) -> Any:
    """
    Args:
        logs: (source, its points) in the order of time; together they are one log.
        unclear: names that must not become canonical ones.
    Returns:
        An Arrow table, by name and then in the order of the logs; names and sources are dictionaries.
    """
    import pyarrow

    sources = [source for source, _ in logs]
    by_name: dict[str, list[tuple[int, Points]]] = {}
    for number, (_, points) in enumerate(logs):
        for part in points:
            by_name.setdefault(part.name, []).append((number, part))
    names = canonical_names(by_name, unclear)
    batches = [
        _batch(name, names[name], parts, sources)
        for name, parts in sorted(by_name.items(), key=lambda item: (names[item[0]], item[0]))
    ]
    schema = _schema()
    # One dictionary for all batches, so that the table is written as one.
    return pyarrow.Table.from_batches(batches, schema).unify_dictionaries() if batches else schema.empty_table()


def _schema() -> Any:
    import pyarrow

    text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    return pyarrow.schema(
        [
            ("step", pyarrow.int64()),
            ("attempt", pyarrow.int32()),
            ("name", text),
            ("value", pyarrow.float64()),
            ("original_name", text),
            ("source", text),
        ]
    )


def _batch(original: str, name: str, parts: Sequence[tuple[int, Points]], sources: Sequence[str]) -> Any:
    import pyarrow

    steps = np.concatenate([part.steps for _, part in parts])
    lengths = [len(part.steps) for _, part in parts]
    same = np.zeros(len(steps), dtype=np.int32)
    of_source = np.repeat(np.array([number for number, _ in parts], dtype=np.int32), lengths)

    def text(codes: np.ndarray, values: Sequence[str]) -> Any:
        return pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array(values, pyarrow.string()))

    return pyarrow.record_batch(
        [
            pyarrow.array(steps),
            pyarrow.array(attempts_of(steps)),
            text(same, [name]),
            pyarrow.array(np.concatenate([part.values for _, part in parts])),
            text(same, [original]),
            text(of_source, sources),
        ],
        schema=_schema(),
    )


def attempts_of(steps: np.ndarray) -> np.ndarray:
    """For each place of a list of steps, how often its step has stood there so far: 1, 2, … (int32)."""
    if len(steps) < 2 or (steps[1:] > steps[:-1]).all():
        return np.ones(len(steps), dtype=np.int32)
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    places = np.arange(len(steps))
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(begins, places, 0))
    attempts = np.empty(len(steps), dtype=np.int32)
    attempts[order] = places - first + 1
    return attempts


def summary_rows(table: Any) -> Iterator[dict[str, Any]]:
    """What a table of metrics holds, a row a metric; NaN is counted apart and is neither lowest nor highest."""
    import pyarrow.compute as compute

    for batch in table.to_batches():
        if not batch.num_rows:
            continue
        steps = batch.column("step").to_numpy()
        values = batch.column("value").to_numpy()
        numbers = values[~np.isnan(values)]
        yield {
            "name": batch.column("name")[0].as_py(),
            "original_name": batch.column("original_name")[0].as_py(),
            "points": batch.num_rows,
            "first_step": int(steps.min()),
            "last_step": int(steps.max()),
            "attempts": int(batch.column("attempt").to_numpy().max()),
            "nan": int(len(values) - len(numbers)),
            "lowest": float(numbers.min()) if len(numbers) else None,
            "highest": float(numbers.max()) if len(numbers) else None,
            "sources": [
                str(source) for source in compute.unique(batch.column("source").dictionary_decode()).to_pylist()
            ],
        }
