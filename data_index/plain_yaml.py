"""YAML as trainers write their configs: plain values, read without constructing anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_index.errors import CorruptFile, MissingFile, UnsafeFile

MAX_CONFIG_BYTES = 16 * 2**20


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without merge keys, which can unfold a small file into a huge one."""

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise UnsafeFile("a config merges mappings into others (<<), which no trainer writes")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML (or JSON) file that holds one mapping. Numbers such as `1e-5` stay text: YAML 1.1 says so.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise UnsafeFile(f"{path} has {size} bytes, more than any config")
        value = yaml.load(path.read_bytes(), Loader=_PlainLoader)  # noqa: S506
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is not there") from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise CorruptFile(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} is not a config")
    return value
