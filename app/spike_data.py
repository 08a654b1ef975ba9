"""What the pages of spikes and of coloured text ask of forensics."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app.data import Version, workspace

_computing = threading.Lock()  # torch's threads and kernels are set for the whole process


@st.cache_data(max_entries=16, show_spinner=False)
def spikes(at: Version, run: str) -> Any:
    from forensics.spike_answers import kept_spikes

    return kept_spikes(run, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def blame(at: Version, run: str, peak: int) -> Any:
    """A KeptBlame; a sentence where it cannot be read; None where it was not asked."""
    from forensics.spike_answers import kept_blame

    return kept_blame(run, peak, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def blamed(at: Version, run: str) -> list[int]:
    from forensics.spike_answers import blamed_steps

    return blamed_steps(run, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def blame_plan(at: Version, run: str, peak: int) -> Mapping[str, Any]:
    """What it would cost; takes a second or two."""
    from forensics.attribution_plan import plan_blame

    with _computing:
        return plan_blame(run, peak, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def traced(at: Version, run: str, step: int) -> Any:
    """Coloured rows of a step by instance, as `blame` traced them."""
    from forensics.loss_texts import traced_texts

    return traced_texts(run, step, workspace=workspace())


@st.cache_data(max_entries=16, show_spinner=False)
def losses(at: Version, run: str, step: int, checkpoint: int) -> Any:
    """Coloured rows of a step by position; None where no losses are kept."""
    from forensics.loss_texts import loss_texts

    return loss_texts(run, step, checkpoint, workspace=workspace())


@st.cache_data(max_entries=64, show_spinner=False)
def checkpoints_with_weights(at: Version, run: str) -> list[int]:
    """Steps of those that are there, or were never looked for."""
    there = workspace()
    found = there.checkpoints(there.run(run))
    return sorted({c.step for c in found if "weights" in c.states and c.is_available() is not False})


@st.cache_data(max_entries=16, show_spinner=False)
def losses_plan(
    at: Version, run: str, step: int, checkpoint: int, instances: Sequence[int] | None
) -> Mapping[str, Any]:
    """What computing them would read; headers of the weights are looked at."""
    from forensics.step_losses import plan_token_losses

    with _computing:
        return plan_token_losses(run, step, checkpoint, instances, workspace=workspace())


def compute_losses(run: str, step: int, checkpoint: int, instances: Sequence[int] | None) -> Sequence[str]:
    """Compute and keep them; what one has to know of it."""
    from forensics.step_losses import token_losses

    with _computing:
        found = token_losses(run, step, checkpoint, instances, workspace=workspace())
        return tuple(found.notes)
