"""Functions of the user's own: found by their names, and told from edited ones."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_index.errors import FailedFunction
from data_index.files import sha256_of_file


def find_function(name: str, *, option: str = "--fn ", example: str = "my_tags:language") -> Callable[..., Any]:
    """The function that `module:function` names; the module may lie in the current folder.

    Args:
        option: what stands before the name where the user wrote it, for messages.
    Raises:
        FailedFunction
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise FailedFunction(f"{name!r} names no function; write module:function, such as {example}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's code
        raise FailedFunction(f"{module}, named by {option}{name}, cannot be imported: {error!r}") from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise FailedFunction(f"{found.__name__} has no function {attribute!r}, which {option}{name} names")
    return function


def identity_of(function: Callable[..., Any]) -> str:
    """A hash of the file that a function stands in, so that answers of an edited one are not mixed with older ones."""
    source = inspect.getsourcefile(inspect.unwrap(function)) if inspect.isroutine(function) else None
    if source is not None and Path(source).is_file():
        return sha256_of_file(Path(source))
    return hashlib.sha256(repr(function).encode()).hexdigest()


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Can it be called with these? False where it has no signature to be had."""
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True
