"""Do our five packages come from one place? A stray replay.py or app/ on the path would answer in their stead.

Standard library only: it runs before any of the packages is imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("data_index", "replay", "probes", "forensics", "app")


def find_intruder() -> str | None:
    """A sentence that names the first module in a package's place, and what to do; None where all are ours."""
    home = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != home / package / "__init__.py":
            return (
                f"'import {package}' would load {found or 'nothing'} instead of {home / package}/__init__.py: run "
                "forensics from another folder, or take that path out of PYTHONPATH"
            )
    return None
