"""The wheel is whole and works away from the checkout, also in a folder whose files have our packages' names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests is not installed

from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_index", "replay", "probes", "forensics", "app")
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "fixtures")

DEMO = f"""
import sys
from pathlib import Path
import app, data_index, forensics, probes, replay
from data_index.workspace import Workspace
from forensics.sample_run import SampleSpec
from forensics.walkthrough import demo

target = Path(sys.argv[1])
for package in (app, data_index, forensics, probes, replay):
    assert Path(package.__file__).is_relative_to(target), package
demo(workspace=Workspace(sys.argv[2]), spec=SampleSpec(**{asdict(TINY)!r}))
"""

PAGES = """
import sys
from streamlit.testing.v1 import AppTest
from forensics.explorer_server import main_script

assert str(main_script()).startswith(sys.argv[1]), main_script()
page = AppTest.from_file(str(main_script()), default_timeout=60).run()
for name in ("run", "step", "spikes", "forks", "trajectories"):
    page = page.switch_page(f"views/{name}.py").run()
    assert not page.exception, (name, page.exception)
    print(page.title[0].value)
"""


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, because building writes beside the sources and takes what an earlier build left there."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "checkout", ignore=NOT_SOURCE))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    built = python("-m", "pip", "wheel", *offline, "--wheel-dir", folder, source, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and bin/forensics; what they depend on comes from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-index", "--no-deps", "--target", folder, wheel, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project of somebody else, with modules called as ours are."""
    for name in ("app/__init__.py", "tests/__init__.py", "replay.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('not the one that was asked for')\n")
    return tmp_path


def test_the_wheel_holds_every_source_file_and_nothing_else(source, wheel):
    """A package left out of pyproject's list, or a data file without a pattern, would be missing only for users."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    files = [path.relative_to(source).as_posix() for package in PACKAGES for path in (source / package).rglob("*.*")]

    assert sorted(names) == sorted(files)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert {"data_index/sql/index.sql", "data_index/sql/views.sql"} <= set(names)


def test_the_installed_command_works_anywhere(installed, elsewhere):
    """A console script does not put the current folder on the path."""
    for arguments in (["--help"], ["runs", "--workspace", "workspace"]):
        done = python(installed / "bin" / "forensics", *arguments, cwd=elsewhere, PYTHONPATH=str(installed))

        assert done.returncode == 0, done.stderr


def test_the_demo_runs_from_the_wheel(installed, elsewhere):
    """Training, index, replay, fork and pictures, with nothing from the checkout."""
    done = python("-P", "-c", DEMO, installed, "workspace", cwd=elsewhere, PYTHONPATH=str(installed))

    assert done.returncode == 0, done.stderr
    assert "grade R0" in done.stdout
    assert list((elsewhere / "workspace" / "findings").glob("compare-*.png"))
    places = {"PYTHONPATH": str(installed), "FORENSICS_WORKSPACE": "workspace", "HOME": str(elsewhere / "home")}
    pages = python("-P", "-c", PAGES, installed, cwd=elsewhere, **places)
    assert pages.returncode == 0, pages.stderr
    assert pages.stdout.split() == ["Run", "Step", "Spikes", "Forks", "Trajectories"]


@pytest.mark.parametrize("intruder", ["replay.py", "app/__init__.py"])
def test_a_module_that_takes_the_place_of_ours_is_named(intruder, installed, tmp_path):
    """`python -m` puts the current folder first on the path."""
    (tmp_path / intruder).parent.mkdir(exist_ok=True)
    (tmp_path / intruder).write_text("")
    done = python("-m", "forensics.cli.main", "runs", cwd=tmp_path, PYTHONPATH=str(installed))

    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path / intruder) in done.stderr
    assert "Traceback" not in done.stderr
