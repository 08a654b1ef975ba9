"""Runs that the tests share: a tiny sample run, the OLMo-core fixture, the full sample run.

Skips are allowed only for the reasons listed here; any other skip fails the suite.
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.sample_run import SampleSpec, train_sample_run

pytest_plugins = ["tests.servers.fixtures"]

FIXTURES = Path(__file__).parent / "fixtures"

ALLOWED_SKIPS = (
    "no Chromium is installed",
    "needs root to mount a small disk",
    "published listings are not beside the checkout",
    "published metrics are not beside the checkout",
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


def pytest_configure() -> None:
    """A suite that a shell put in the background ignores Ctrl-C, and so would the commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    import duckdb
    import numpy
    import torch
    import transformers

    return [
        f"python {platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"transformers {transformers.__version__}, numpy {numpy.__version__}, duckdb {duckdb.__version__}",
    ]


NOTES = pytest.StashKey[dict[str, None]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(NOTES, {}):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Where pytest-xdist runs the tests in several processes, each hands over its notes as it ends."""
    notes = getattr(node, "workeroutput", {}).get("forensics_notes", [])
    node.config.stash.setdefault(NOTES, {}).update(dict.fromkeys(notes))


def note(config: pytest.Config, lines: list[str]) -> None:
    """Have the summary say this."""
    config.stash.setdefault(NOTES, {}).update(dict.fromkeys(lines))
    if hasattr(config, "workeroutput"):
        config.workeroutput["forensics_notes"] = list(config.stash[NOTES])


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


# Runs of the real trainers, by the name they have in `core_shared`.
REAL_RUNS = {"core": "olmo-core/main", "skip": "olmo-core/skipstep", "olmo": "olmo"}


@pytest.fixture(scope="session")
def core_shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the real runs of tests/fixtures: `core` and `skip` of OLMo-core, `olmo` of its predecessor."""
    shared = Workspace(tmp_path_factory.mktemp("core"))
    for name, folder in REAL_RUNS.items():
        add(FIXTURES / folder, name=name, workspace=shared)
    return shared


@pytest.fixture(scope="session")
def known_kernels(core_shared: Workspace, request: pytest.FixtureRequest) -> dict[str, bool]:
    """For each real run: does this machine compute like one where it was replayed bit for bit? Said in the summary."""
    from forensics.reproduction import fingerprint_of, prepare

    seen = json.loads((FIXTURES / "fingerprints.json").read_text())
    known = {
        name: fingerprint_of(prepare(core_shared, core_shared.run(name), "cpu", "recipe")) == seen[name]["fingerprint"]
        for name in REAL_RUNS
    }
    grades = {True: "bits", False: "R1, as this machine has other kernels than the fixture's"}
    note(request.config, [f"{name}: asserted {grades[same]}" for name, same in known.items()])
    return known


@pytest.fixture(scope="session")
def same_kernels(known_kernels: dict[str, bool]) -> bool:
    """The same for the OLMo-core run `core`."""
    return known_kernels["core"]
