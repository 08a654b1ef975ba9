"""Two checkpoints side by side from what is kept: only numbers that compare stand beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_index.kinds import table_of_rows
from data_index.probe_queries import measured_steps, probe_metrics
from data_index.registration import add
from data_index.workspace import Workspace, learn
from forensics.kept_sides import kept_sides
from forensics.probe_catalogue import PROBES, unmeasured_probes
from forensics.side_by_side import SideBySide
from forensics.side_by_side_picture import figure_of_sides


def number(probe: str, metric: str, step: int, value: float, settings: str = "{}") -> dict[str, Any]:
    return {"step": step, "probe": probe, "metric": metric, "value": value, "settings": settings, "unit": "nats"} | {
        "low": value - 1,
        "high": value + 1,
    }


@pytest.fixture(scope="module")
def shared(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("sides"))
    for name in ("tiny", "other"):
        add(tiny_source, name=name, workspace=workspace)
    tables = {
        "tiny": [
            *(number("loss", "loss", step, 6.0 - step / 10) for step in (0, 20)),
            *(number("norms", f"norm, layer {layer}", step, float(layer)) for step in (0, 20) for layer in (10, 2)),
            number("alone", "x", 20, 1.0),
        ],
        "other": [number("loss", "loss", 5, 3.0, "{'rows': 1}"), number("norms", "norm, layer 2", 5, float("nan"))],
    }
    for name, rows in tables.items():
        learn(workspace.home(name), "probes", table_of_rows("probes", rows, "test"))
    return workspace


def values(found: SideBySide) -> list[tuple[str, float, float]]:
    return [(row["metric"], row["value"], row["other"]) for row in found.rows]


def test_numbers_of_two_checkpoints_stand_beside_each_other(shared: Workspace) -> None:
    found = kept_sides("tiny", 0, "tiny", 20, workspace=shared)

    assert values(found) == [("loss", 6.0, 4.0), ("norm, layer 2", 2.0, 2.0), ("norm, layer 10", 10.0, 10.0)]
    assert found.rows[0]["difference"] == -2.0 and (found.one, found.other) == ("tiny@0", "tiny@20")
    assert (found.rows[0]["low"], found.rows[0]["other_high"]) == (5.0, 5.0)
    assert found.messages == ("kept of tiny@20 alone: alone",)
    assert [panel.title for panel in figure_of_sides(found).panels] == ["loss", "norms"]
    assert values(kept_sides("tiny", 0, "tiny", 20, probes=["loss"], workspace=shared)) == [("loss", 6.0, 4.0)]


def test_numbers_of_other_rows_do_not_compare(shared: Workspace) -> None:
    """The same name under other settings would mislead."""
    found = kept_sides("tiny", 20, "other", 5, workspace=shared)

    assert [row["metric"] for row in found.rows] == ["norm, layer 2"]
    assert found.messages[0] == "measured under different settings, so that the numbers do not compare: loss"


def test_what_was_measured_at_all_is_listed(shared: Workspace) -> None:
    run = shared.run("tiny")

    assert measured_steps(shared, run) == [0, 20]
    assert probe_metrics(shared, run)[:2] == [("alone", "x"), ("loss", "loss")]
    missing = [row["probe"] for row in unmeasured_probes("tiny", ["loss@my-rows.jsonl", "norms", "task:sciq"])]
    assert missing == [name for name in PROBES if name not in ("loss", "norms")]
    assert unmeasured_probes("a run", [])[0]["command"] == "forensics probe 'a run' loss"
