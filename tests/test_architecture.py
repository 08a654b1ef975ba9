"""The shape that design.md draws: who imports whom, and one door for each kind of side effect."""

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from data_index.workspace import Workspace

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "data_index": set(),
    "replay": {"data_index"},
    "probes": {"data_index"},
    "forensics": {"data_index", "replay", "probes"},
    "app": {"data_index", "replay", "probes", "forensics"},
}
# What a machine that only computes may lack.
NOT_FOR_REPLAY = ("duckdb", "streamlit", "plotly", "pyarrow", "typer", "rich", "matplotlib", "tokenizers")

WITHOUT = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in {NOT_FOR_REPLAY!r} else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
COMMAND = """
import json, os, sys
from forensics.cli.main import main

sys.argv = ["forensics", *json.loads(os.environ["ARGUMENTS"])]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "transformers", "streamlit", "matplotlib", "plotly"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
"""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the five packages by its path in the project."""
    paths = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(paths)}


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported anywhere in it, inside functions too; relative imports as a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def importers_of(*names: str) -> set[str]:
    return {path for path, tree in modules().items() if any(found.split(".")[0] in names for found in imports(tree))}


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with what is called, as written: torch.load, connection.execute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def callers_of(*ends: str) -> set[str]:
    return {path for path, tree in modules().items() if any(name.endswith(ends) for name, _ in calls(tree))}


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, cwd=ROOT, capture_output=True, text=True
    )


# --- who imports whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package: str) -> None:
    """app > forensics > replay, probes > data_index; replay and probes do not know each other."""
    for path, tree in modules().items():
        if path.startswith(f"{package}/"):
            ours = {name.split(".")[0] for name in imports(tree)} & set(MAY_IMPORT)
            assert ours - {package} <= MAY_IMPORT[package], path
            assert not any(name.startswith(".") for name in imports(tree)), f"{path} imports relatively"


def test_the_index_knows_no_torch() -> None:
    assert {
        path for path in importers_of("torch", "transformers", "safetensors") if path.startswith("data_index/")
    } == set()


def test_the_explorer_computes_nothing() -> None:
    """Views call forensics, never torch or SQL."""
    assert {
        path for path in importers_of("torch", "transformers", "duckdb", "numpy") if path.startswith("app/")
    } == set()


# --- one door for each kind of side effect ---------------------------------------------------------------------------


def test_duckdb_has_two_doors() -> None:
    assert importers_of("duckdb") == {"data_index/store.py", "data_index/index.py"}


def test_one_module_unpickles() -> None:
    unpicklers = ("pickle", "pickletools", "cPickle", "cloudpickle", "dill", "joblib", "shelve")

    assert importers_of(*unpicklers) == {"data_index/pickles.py"}
    assert callers_of("torch.load", "jit.load", "hub.load", "marshal.load", "marshal.loads") == set()


def test_numpy_never_unpickles() -> None:
    for path, tree in modules().items():
        for name, call in calls(tree):
            allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert allowed.get("allow_pickle", "False") == "False", path
            assert not name.endswith("np.load") or "allow_pickle" in allowed, path


def test_nothing_is_evaluated() -> None:
    for path, tree in modules().items():
        assert not {"eval", "exec", "__import__"} & {name for name, _ in calls(tree)}, path


# --- what starts without what ----------------------------------------------------------------------------------------

REPLAY = """
import replay, replay.train_step, replay.recording, replay.weights, replay.determinism, replay.fidelity
import replay.intervention, probes.norms, probes.loss
"""


def test_a_machine_that_only_computes_needs_neither_index_nor_screen() -> None:
    done = run_python(WITHOUT + REPLAY)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["duckdb", "pyarrow.parquet", "tokenizers", "data_index.store"])
def test_what_that_machine_lacks_is_really_blocked(name: str) -> None:
    """Otherwise the test above would prove nothing."""
    done = run_python(f"{WITHOUT}\nimport {name}")

    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["runs"],
        ["sql", "select 1"],
        ["batch", "tiny", "3"],
        ["batch", "tiny", "0:5", "--by", "tag", "--format", "json"],
        ["where", "tiny", "--instance", "50"],
        ["at", "tiny", "3"],
        ["cite", "tiny"],
    ],
    ids=" ".join,
)
def test_verbs_that_look_start_without_torch(arguments: list[str], tiny_shared: Workspace) -> None:
    done = run_python(COMMAND, ARGUMENTS=json.dumps(arguments), FORENSICS_WORKSPACE=str(tiny_shared.folder))

    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("argument", ["--help", "runs"])
def test_what_opens_no_table_starts_without_numpy(argument: str, tmp_path: Path) -> None:
    command = COMMAND.replace('"torch", ', '"torch", "numpy", "duckdb", "yaml", "pydantic", ')
    done = run_python(command, ARGUMENTS=json.dumps([argument]), FORENSICS_WORKSPACE=str(tmp_path))

    assert done.returncode == 0, done.stderr


def test_python_packages_start_light() -> None:
    done = run_python("import sys, data_index, probes, forensics, forensics.cli, app; print(len(sys.modules))")
    empty = run_python("import sys; print(len(sys.modules))")

    assert int(done.stdout) < int(empty.stdout) + 20


# --- how large a module is -------------------------------------------------------------------------------------------


def test_the_median_module_is_read_in_one_sitting() -> None:
    lengths = [len((ROOT / path).read_text().splitlines()) for path in modules() if not path.endswith("/__init__.py")]

    assert 60 <= statistics.median(lengths) <= 270
