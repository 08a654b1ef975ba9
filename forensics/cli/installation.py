"""Do our five packages come from one place? A stray replay.py or app/ on the path would answer in their stead."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from data_index.errors import MixedInstallation

PACKAGES = ("data_index", "replay", "probes", "forensics", "app")


def check_installation() -> None:
    """
    Raises:
        MixedInstallation: names the intruder.
    """
    home = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != home / package / "__init__.py":
            raise MixedInstallation(
                f"'import {package}' would load {found or 'nothing'} instead of {home / package}/__init__.py: run "
                "forensics from another folder, or take that path out of PYTHONPATH"
            )
