"""Tasks of lm-evaluation-harness, loaded once a process; what goes wrong is said before a checkpoint is read."""

from __future__ import annotations

import difflib
import functools
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_index.errors import (
    AccessDenied,
    ForensicsError,
    MissingFile,
    MissingPackage,
    Offline,
    UnknownTask,
    Unreachable,
    UnusableTask,
)
from forensics.harness_files import TaskFile, family_of, with_places
from forensics.harness_surroundings import RandomStates, Seeds, drawn_so_far, quiet, random_numbers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedTasks:
    """
    Attributes:
        tasks: what the harness evaluates.
        main: the name whose numbers are called by their metrics alone; None: none is.
        drawn: states of the random numbers after the tasks were loaded, as the harness goes on with them.
    """

    tasks: Any
    main: str | None
    drawn: RandomStates


@functools.lru_cache(maxsize=256)
def load_tasks(task: str, files: bytes, num_fewshot: int | None, seeds: Seeds) -> LoadedTasks:
    """Once a process; `files` are hashes, so that an edited task is loaded again."""
    harness_version()
    try:
        with random_numbers(seeds), quiet():
            tasks, main = _tasks_of(task)
            for one in tasks["tasks"].values():
                says = one.get_config("num_fewshot")
                if says is None or num_fewshot is not None and says != 0:
                    one.set_config(key="num_fewshot", value=num_fewshot or 0)
            return LoadedTasks(tasks=tasks, main=main, drawn=drawn_so_far())
    except ForensicsError:
        raise
    except Exception as error:  # the harness's, its datasets' and the task's own
        raise _stated(error, task) from error


def _tasks_of(task: str) -> tuple[Any, str | None]:
    """What the harness loads, and the name of the one task or of the group."""
    file = Path(task)
    if file.suffix == ".yaml":
        loaded = _tasks_of_file(file)
    else:
        manager = installed_tasks()
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.all_tasks, n=5)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise UnknownTask(
                f"lm-eval {harness_version()} has no task {task!r}{hint} (lm-eval ls tasks lists all; a task file ends "
                "in .yaml)"
            )
        loaded = manager.load([task])
    if loaded["groups"]:
        inside = {name for names in loaded["group_map"].values() for name in names}
        return loaded, next(name for name in loaded["groups"] if name not in inside)
    return loaded, next(iter(loaded["tasks"])) if len(loaded["tasks"]) == 1 else None


@functools.cache
def installed_tasks() -> Any:
    """Reading the harness's thousands of task files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _tasks_of_file(file: Path) -> Any:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    family = family_of(file)
    configs = {one.name: with_places(load_yaml(one.path), one.path.parent) for one in family}
    if not family[0].is_group:
        return TaskManager(include_defaults=False).load([configs[family[0].name]])
    manager = TaskManager(include_path=str(file.parent), include_defaults=False)
    for name, entry in manager.task_index.items():
        if name in configs:
            entry.yaml_path, entry.cfg = None, configs[name]
    for one in family:
        _find_members(one, manager)
    # By name: a group that is handed over as a dict would hand its own settings down to its tasks.
    return manager.load([family[0].name])


def _find_members(group: TaskFile, manager: Any) -> None:
    """Let the manager know those of the harness's own tasks that a group names.

    Raises:
        UnknownTask
    """
    for name in group.members():
        if name not in manager.task_index:
            installed = installed_tasks()
            if name not in installed.task_index:
                raise UnknownTask(f"{group.path} names the task {name}, which is neither beside it nor the harness's")
            for known, entry in installed.task_index.items():
                manager.task_index.setdefault(known, entry)


def _stated(error: Exception, task: str) -> ForensicsError:
    """The error of ours that one of the harness's while loading amounts to."""
    said = f"{str(error)[:300] or type(error).__name__}"
    if isinstance(error, ImportError) and error.name:
        return MissingPackage(f"{task} needs the package {error.name}, which is not installed ({said})")
    if isinstance(error, ConnectionError):
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        kind, hint = (Offline, "; HF_HUB_OFFLINE forbids to fetch it") if offline else (Unreachable, "")
        return kind(f"the data of {task} are not kept here and cannot be had: {said}{hint}")
    if isinstance(error, FileNotFoundError):
        if "gated" in said:
            return AccessDenied(f"the data of {task} want a token: {said}")
        missing = MissingFile if Path(task).suffix == ".yaml" else Unreachable
        return missing(f"the data of {task} are not there: {said}")
    return UnusableTask(f"{task} cannot be loaded: {type(error).__name__}: {said}")


def harness_version() -> str:
    try:
        import accelerate  # noqa: F401

        return version("lm_eval")
    except (ImportError, PackageNotFoundError) as error:
        raise MissingPackage(
            "benchmark tasks are measured by lm-evaluation-harness: pip install 'checkpoint-forensics[eval]'"
        ) from error
