"""YAML as trainers write their configs: plain values, read without constructing anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import read_limited

if TYPE_CHECKING:
    from data_index.remote.path import Place

MAX_CONFIG_BYTES = 16 * 2**20
# Values in a config, those that several places share counted in each; and how deep they lie.
MAX_VALUES = 2**22
MAX_DEPTH = 100
# No number or date is longer; parsing some that are takes time that grows with the square.
MAX_SCALAR = 200
_TEXT = "tag:yaml.org,2002:str"


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without merge keys, which can unfold a small file into a huge one."""

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise UnsafeFile("a config merges mappings into others (<<), which no trainer writes")

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > MAX_SCALAR:
            raise UnsafeFile(f"a number or date of {len(node.value):,} characters")
        return super().construct_object(node, deep)


def read_yaml(path: Place) -> dict[str, Any]:
    """A YAML (or JSON) file that holds one mapping. Numbers such as `1e-5` stay text: YAML 1.1 says so.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    return parse_yaml(read_limited(path, MAX_CONFIG_BYTES), str(path))


def parse_yaml(content: bytes, path: str) -> dict[str, Any]:
    """
    Raises:
        CorruptFile, UnsafeFile
    """
    try:
        value = yaml.load(content, Loader=_PlainLoader)  # noqa: S506
        if not isinstance(value, dict):
            raise CorruptFile("it is not a config")
        _unfolded(value, {})
    except UnsafeFile as error:
        raise UnsafeFile(f"{path}: {error}") from error
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}") from error
    # Constructors of the library fail in any way that a wrong text makes Python fail.
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise CorruptFile(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return {str(key): item for key, item in value.items()}


def _unfolded(value: Any, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values in and below a value, those that are shared counted wherever they stand, and how deep they lie.

    Raises:
        UnsafeFile: too many, too deep, or within themselves.
    """
    if not isinstance(value, dict | list | tuple | set):
        return 1, 0
    if id(value) not in known:
        known[id(value)] = None
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        below = [_unfolded(item, known) for item in items]
        known[id(value)] = 1 + sum(count for count, _ in below), 1 + max((depth for _, depth in below), default=0)
    found = known[id(value)]
    if found is None or found[0] > MAX_VALUES or found[1] > MAX_DEPTH:
        raise UnsafeFile("its values unfold without end, by references or by nesting, as no trainer's config does")
    return found
