"""Reading a trainer's config without passing over anything that defines the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_index.errors import UnsupportedRecipe
from data_index.sources.folder import lookup


class ConfigFields:
    """A config, and what of it cannot be replayed as it was.

    Args:
        file: the config's file name, for messages.
        approximate: go on past what is not supported; `approximated` keeps what was passed over.
    """

    def __init__(self, config: Mapping[str, Any], file: str, *, approximate: bool = False) -> None:
        self.config, self.file, self.approximate = config, file, approximate
        self.approximated: list[str] = []

    def get(self, path: str, default: Any = None) -> Any:
        """A value by dotted name; the default where it is absent or null."""
        value = lookup(self.config, path)
        return default if value is None else value

    def number(self, path: str, default: float | None = None) -> float:
        """
        Raises:
            KeyError: it is absent and has no default.
        """
        value = self.get(path, default)
        if value is None:
            raise KeyError(path)
        return float(value)

    def refuse(self, what: str) -> None:
        """
        Raises:
            UnsupportedRecipe: unless the caller asked for an approximation.
        """
        if not self.approximate:
            raise UnsupportedRecipe(f"{self.file}: {what} (to go on without it, at a lower grade: --approximate)")
        self.approximated.append(what)

    def require(self, expected: Mapping[str, Any], base: Mapping[str, Any] | None = None, where: str = "") -> None:
        """Refuse each field whose value is none of the expected ones (a tuple lists several)."""
        for path, allowed in expected.items():
            actual = lookup(self.config if base is None else base, path)
            options = allowed if isinstance(allowed, tuple) else (allowed,)
            if actual not in options:
                self.refuse(
                    f"{where}{path} = {actual!r} makes a different step than this version replays "
                    f"({' or '.join(map(repr, options))})"
                )
