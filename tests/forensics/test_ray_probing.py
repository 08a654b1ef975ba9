"""`probe --workers 2`: the same numbers as here, to the last bit, also where a worker is killed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from data_index.errors import Unreachable
from data_index.registration import add
from data_index.workspace import Workspace
from forensics.probe_options import ProbeOptions
from forensics.probing import probe
from forensics.ray_measuring import measured_on_ray
from replay.weights import read_weights
from tests.forensics.test_probing import ONE_THREAD, SEVERAL, STEPS

# The first worker that comes to checkpoint 10 dies of it; the model is told by one of its weights.
DEADLY = """
import os, signal
from pathlib import Path

MARK = Path({mark!r})

def first_weight(model):
    value = float(next(model.parameters()).flatten()[0])
    if abs(value - {fatal!r}) < 1e-12 and not MARK.exists():
        MARK.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return value
"""

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


def test_a_sweep_of_two_workers_one_of_them_killed_equals_the_local_one(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = []
    for name in ("here", "there"):
        shutil.copytree(tiny_source, tmp_path / name / "tiny")
        workspaces.append(Workspace(tmp_path / name / "workspace"))
        add(tmp_path / name / "tiny", workspace=workspaces[-1])
    here, there = workspaces
    stored = read_weights(here.checkpoint(here.run("tiny"), 10))
    mark = tmp_path / "mark"
    first = float(stored["model.embed_tokens.weight"].flatten()[0])
    (tmp_path / "deadly_probe.py").write_text(DEADLY.format(mark=str(mark), fatal=first))
    monkeypatch.chdir(tmp_path)
    asked = (*SEVERAL, "deadly_probe:first_weight")
    (there.checkpoint(there.run("tiny"), 15).folder / "model.safetensors").write_bytes(b"")
    (here.checkpoint(here.run("tiny"), 15).folder / "model.safetensors").write_bytes(b"")

    measuring = partial(measured_on_ray, workers=2)
    found = probe("tiny", *asked, options=ONE_THREAD, measuring=measuring, workspace=there)
    assert mark.is_file()  # the worker is dead
    local = probe("tiny", *asked, options=ONE_THREAD, workspace=here)

    assert found.rows == local.rows
    assert sorted({row["step"] for row in found.rows}) == [step for step in STEPS if step != 15]
    assert {problem.step for problem in found.problems} == {15} and len(found.problems) == len(asked)
    again = probe("tiny", *asked, options=ONE_THREAD, workspace=there)
    assert again.rows == found.rows and again.num_measured == 1  # the damaged one


def test_a_cluster_that_is_not_there_is_said(tiny: Workspace) -> None:
    measuring = partial(measured_on_ray, address="127.0.0.1:9")
    with pytest.raises(Unreachable, match="no Ray cluster at 127.0.0.1:9"):
        probe("tiny", "norms", options=ProbeOptions(threads=1), measuring=measuring, workspace=tiny)
