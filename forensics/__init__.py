"""Questions about a run, answered with data_index, replay and probes.

The names here equal the command line's verbs; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Workspace": "data_index.workspace",
    "add": "forensics.adding",
    "connect": "data_index.store",
    "audit": "forensics.soundness",
    "at": "forensics.lookup",
    "catalog": "data_index.registry",
    "batch": "forensics.lookup",
    "batches": "forensics.lookup",
    "where": "forensics.lookup",
    "sql": "forensics.lookup",
    "repeats": "forensics.repetition",
    "documents": "forensics.document_learning",
    "tag": "forensics.document_tags",
    "replay": "forensics.reproduction",
    "fork": "forensics.forking",
    "compare": "forensics.divergence",
    "demo": "forensics.walkthrough",
    "exposures": "forensics.token_counts",
    "import_metrics": "forensics.imported_metrics",
    "ngrams": "forensics.text_index",
    "spikes": "forensics.spike_detection",
    "blame": "forensics.attribution",
    "probe": "forensics.probing",
    "tokens": "forensics.undertrained_tokens",
    "token_losses": "forensics.step_losses",
    "token_paths": "forensics.token_paths",
    "trajectory": "forensics.trajectories",
    "pack": "forensics.packing",
    "open_pack": "forensics.opening",
    "report": "forensics.run_page",
    "cite": "forensics.citation",
    "jobs": "forensics.background_jobs",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'forensics' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
