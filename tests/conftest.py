"""Runs that the tests share: a tiny sample run, the OLMo-core fixture, the full sample run.

Skips are allowed only for the reasons listed here; any other skip fails the suite.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import pytest

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.sample_run import SampleSpec, train_sample_run

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = os.environ.get("FORENSICS_FIXTURES")

ALLOWED_SKIPS = (
    "needs the published runs beside the checkout (FORENSICS_FIXTURES)",
    "needs root to mount a small disk",
)

# 20 steps with the same accidents as the demo; seconds to train.
TINY = SampleSpec(
    name="tiny",
    num_steps=20,
    steps_per_epoch=14,
    instances_per_batch=8,
    sequence_length=64,
    vocabulary=384,
    hidden=32,
    inner=64,
    layers=2,
    heads=2,
    save_every=5,
    warmup_steps=3,
    binary_step=9,
    binary_rows=2,
    repetitive_step=7,
    duplicate_steps=(3, 11),
    duplicate_rows=2,
    document_characters=800,
    look_at_step=8,
    stretch=(5, 15),
    fork_from=5,
    fork_steps=10,
)


def pytest_report_header() -> list[str]:
    import duckdb
    import numpy
    import torch
    import transformers

    return [
        f"python {platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"transformers {transformers.__version__}, numpy {numpy.__version__}, duckdb {duckdb.__version__}",
        f"published runs: {PUBLISHED or 'not here'}",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in getattr(terminalreporter.config, "forensics_notes", []):
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            reporter.write_line(f"not an allowed skip: {report.nodeid}: {reason}", red=True)
            session.exitstatus = 1


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published runs."""
    if not PUBLISHED:
        pytest.skip(ALLOWED_SKIPS[0])
    return Path(PUBLISHED)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def tiny_spec() -> SampleSpec:
    return TINY


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run as trained. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    train_sample_run(folder, TINY)
    return folder


@pytest.fixture(scope="session")
def tiny_shared(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the tiny run, for tests that only look. Named `tiny` there."""
    shared = Workspace(tmp_path_factory.mktemp("shared"))
    add(tiny_source, workspace=shared)
    return shared


@pytest.fixture
def tiny_copy(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run's folder that a test may damage."""
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny"))


@pytest.fixture
def tiny(tiny_copy: Path, workspace: Workspace) -> Workspace:
    """A workspace of its own with a copy of the tiny run (its folder: tmp_path/tiny)."""
    add(tiny_copy, workspace=workspace)
    return workspace


@pytest.fixture(scope="session")
def core_shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the real OLMo-core run of tests/fixtures, named `core`."""
    shared = Workspace(tmp_path_factory.mktemp("core"))
    add(FIXTURES / "olmo-core" / "main", name="core", workspace=shared)
    return shared


@pytest.fixture(scope="session")
def same_kernels(core_shared: Workspace, request: pytest.FixtureRequest) -> bool:
    """Does this machine compute like the one where the fixture was replayed bit for bit? Said in the summary."""
    from forensics.reproduction import fingerprint_of, prepare

    known = json.loads((FIXTURES / "olmo-core" / "fingerprint.json").read_text())["fingerprint"]
    same = fingerprint_of(prepare(core_shared, core_shared.run("core"), "cpu", "recipe")) == known
    grade = "R0" if same else "R1: this machine has other kernels than the fixture's"
    notes = getattr(request.config, "forensics_notes", [])
    request.config.forensics_notes = [*notes, f"OLMo-core fixture: asserted {grade}"]  # type: ignore[attr-defined]
    return same
