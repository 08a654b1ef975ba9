"""Tasks of lm-evaluation-harness that are files of the user's: what they stand on, and where their data are.

A task file may include others, name functions in modules beside it and data files, and a group names tasks in its
folder. All are found without running any of them. The harness looks for data from the folder it is started in; here
data that lie beside a task file are meant first, so that a task can be moved, and run on another machine, as a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_index.errors import MissingFile, UnusableTask
from data_index.files import sha256_of_file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskFile:
    """
    Attributes:
        config: what it and what it includes say; a function is its name.
        modules: Python files beside it that its functions are in.
    """

    path: Path
    config: Mapping[str, Any]
    includes: tuple[Path, ...]
    modules: tuple[Path, ...]

    @property
    def name(self) -> str:
        return str(self.config.get("group") or self.config.get("task"))

    @property
    def is_group(self) -> bool:
        return "group" in self.config

    def members(self) -> list[str]:
        """Names that a group lists, those of tasks that it defines itself too."""
        listed = self.config.get("task") if self.is_group else None
        named = [one if isinstance(one, str) else _name_of(one) for one in listed or [] if isinstance(one, str | dict)]
        return [name for name in named if name]


def read_task_file(path: Path) -> TaskFile:
    """
    Raises:
        MissingFile
        UnusableTask: it is no YAML of a task or group.
    """
    includes: list[Path] = []
    modules: list[Path] = []
    config = _merged(path, includes, modules)
    if not (config.get("task") or config.get("group")):
        raise UnusableTask(f"{path} is no task of the harness: it names neither a task nor a group")
    return TaskFile(path=path, config=config, includes=tuple(includes), modules=tuple(modules))


def family_of(path: Path) -> list[TaskFile]:
    """The task file, and for a group those of its members that lie in its folder, and of theirs.

    Raises:
        MissingFile, UnusableTask
    """
    first = read_task_file(path)
    if not first.is_group:
        return [first]
    there = _named_files(path.parent)
    found, waiting = {first.name: first}, first.members()
    while waiting:
        name = waiting.pop()
        if name in there and name not in found:
            found[name] = there[name]
            waiting += there[name].members()
    return list(found.values())


def hashes_of_task(path: Path) -> dict[str, str]:
    """sha256 of every local file that the task's numbers depend on, by its place seen from the task file's folder.

    Modules that its functions import are not followed.

    Raises:
        MissingFile: data that it names are not there.
        UnusableTask, UnsafeFile
    """
    folder = path.parent
    files = {path}
    for one in family_of(path):
        files |= {one.path, *one.includes, *one.modules, *_data_files(one.config, one.path.parent)}
    return {_seen_from(folder, file): sha256_of_file(file) for file in sorted(files)}


def with_places(config: Any, folder: Path) -> Any:
    """A task's config in which data beside the file have absolute paths; those of tasks inside a group too."""
    if isinstance(config, list):
        return [with_places(one, folder) for one in config]
    if not isinstance(config, dict):
        return config
    placed = {name: with_places(value, folder) if name == "task" else value for name, value in config.items()}
    if isinstance(path := config.get("dataset_path"), str):
        placed["dataset_path"] = _place(path, folder)
    if isinstance(settings := config.get("dataset_kwargs"), dict):
        named = {name: _placed(settings[name], folder) for name in ("data_files", "data_dir") if name in settings}
        placed["dataset_kwargs"] = {**settings, **named}
    return placed


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _placed(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_placed(one, folder) for one in value]
    return _place(value, folder) if isinstance(value, str) else value


def _place(text: str, folder: Path) -> str:
    if "://" in text or Path(text).is_absolute():
        return text
    return str(folder / text) if any(_matching(folder / text)) else text


def _matching(path: Path) -> Iterator[Path]:
    """The files that a path or pattern names, those of a folder too."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        yield path
    elif any(sign in str(path) for sign in "*?["):
        yield from (file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file())


def _data_files(config: Any, folder: Path) -> Iterator[Path]:
    """
    Raises:
        MissingFile
    """
    for name in _data_named(with_places(config, folder)):
        found = list(_matching(Path(name).absolute()))
        if not found:
            raise MissingFile(f"a task in {folder} names the data {name}, which are neither beside it nor here")
        yield from found


def _data_named(config: Any) -> Iterator[str]:
    if isinstance(config, list):
        for one in config:
            yield from _data_named(one)
    elif isinstance(config, dict):
        yield from _data_named(config.get("task"))
        path = config.get("dataset_path")
        settings = config.get("dataset_kwargs")
        if isinstance(path, str) and Path(path).is_absolute():
            yield path
        if isinstance(settings, dict):
            named = [*_leaves(settings.get("data_files")), *_leaves(settings.get("data_dir"))]
            yield from (one for one in named if "://" not in one and (Path(one).is_absolute() or _is_format(path)))


def _is_format(path: Any) -> bool:
    """Of a name of a format such as json the data files are the user's; else they are in a dataset of a server."""
    return isinstance(path, str) and "/" not in path


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)


def _name_of(member: Mapping[str, Any]) -> str | None:
    name = member.get("task") if isinstance(member.get("task"), str) else member.get("group")
    return name if isinstance(name, str) else None


def _seen_from(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def _named_files(folder: Path) -> dict[str, TaskFile]:
    """The task files of a folder and its folders by their names, the first of each; the harness looks there too."""
    found: dict[str, TaskFile] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            one = read_task_file(path)
        except (UnusableTask, MissingFile):  # what is no task may lie there
            continue
        found.setdefault(one.name, one)
    return found


def _merged(path: Path, includes: list[Path], modules: list[Path]) -> dict[str, Any]:
    """As the harness does it: later includes win over earlier ones, and the file itself over all."""
    config, functions = _read(path)
    modules += [module for module in map(path.parent.joinpath, map(_module_of, functions)) if module.is_file()]
    listed = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in listed if isinstance(listed, list) else [listed]:
        included = (path.parent / str(name)).resolve()
        if included in includes or included == path:
            raise UnusableTask(f"{path} includes {included} in a circle")
        includes.append(included)
        merged |= _merged(included, includes, modules)
    return merged | config


def _module_of(function: str) -> str:
    return function.rpartition(".")[0].replace(".", "/") + ".py"


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A file's config, and the functions that it names."""
    functions: list[str] = []

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: Any) -> str:
        functions.append(str(loader.construct_scalar(node)))
        return functions[-1]

    Loader.add_constructor("!function", function)
    if not path.is_file():
        raise MissingFile(f"there is no task file {path}")
    try:
        config = yaml.load(path.read_bytes(), Loader=Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError) as error:
        raise UnusableTask(f"{path} is no YAML that can be read: {error}") from error
    if not isinstance(config, dict):
        raise UnusableTask(f"{path} is no task of the harness: it holds no settings")
    return config, functions
