"""Rows of a step coloured by the loss of each token: under which weights, and what it takes where that is not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from app import data, frame, spike_data
from app.marked import show_colours
from data_index.errors import ForensicsError
from forensics.marked_text import MarkedText

PLAIN, COLOURED = "Text", "Loss of each token"
TRACED = "traced"  # in the link: as `blame` traced it


@dataclass(frozen=True, slots=True, kw_only=True)
class Coloured:
    """Rows whose losses are known: by their position, and by their instance."""

    by_position: Mapping[int, MarkedText] = field(default_factory=dict)
    by_instance: Mapping[int, MarkedText] = field(default_factory=dict)

    def row(self, position: int, instance: int) -> MarkedText | None:
        return self.by_position.get(position) or self.by_instance.get(instance)


def choose_weights(run: str, step: int) -> str | None:
    """Under which weights tokens are coloured: a checkpoint, `traced`, or None: they are not."""
    there = spike_data.checkpoints_with_weights(data.version(), run)
    nearest = max((place for place in there if place < step), default=None)
    ways = [str(place) for place in sorted(there, key=lambda place: (place >= step, abs(place - step)))]
    if spike_data.traced(data.version(), run, step):
        ways.insert(0, TRACED)
    asked = frame.selected("under")
    if asked is not None and asked not in ways:
        st.text(f"No checkpoint {asked[:40]!r} of {run} holds weights here.")
        asked = None
    if not ways:
        return None
    st.session_state["mode"] = PLAIN if asked is None else COLOURED
    st.session_state["way"] = asked or ways[0]
    modes = [PLAIN, COLOURED]
    st.segmented_control("Show", modes, required=True, key="mode", label_visibility="collapsed", on_change=_take)
    if asked is None:
        return None

    def told(way: str) -> str:
        if way == TRACED:
            return "just before the step, as blame traced it"
        return f"under checkpoint {way}" + (", the nearest before" if way == str(nearest) else "")

    options: dict[str, Any] = {"key": "way", "label_visibility": "collapsed", "on_change": _take, "width": 330}
    st.selectbox("Weights", ways, format_func=told, **options)
    return asked


def _take() -> None:
    frame.select(under=st.session_state["way"] if st.session_state["mode"] == COLOURED else None)


def coloured_rows(run: str, step: int, under: str, batch: Any, rows: range) -> Coloured:
    """What is known of the losses of some rows; where nothing is kept, a button that computes them.

    Args:
        batch: the rows of the step, an Arrow table. rows: those that are shown.
    """
    if under == TRACED:
        show_colours()
        st.text("Rows that forensics blame looked into are coloured.")
        return Coloured(by_instance=spike_data.traced(data.version(), run, step))
    kept = spike_data.losses(data.version(), run, step, int(under))
    shown = batch.slice(rows.start, len(rows))
    positions = set(shown.column("position").to_pylist())
    if kept is None or not positions <= kept.keys():
        instances = tuple(shown.column("instance").to_pylist())
        try:
            _ask(run, step, int(under), instances, batch.num_rows)
        except ForensicsError as error:
            frame.failed(str(error), "The losses cannot be computed.")
    if kept is None or positions.isdisjoint(kept):
        return Coloured()
    show_colours()
    return Coloured(by_position=kept)


def _ask(run: str, step: int, checkpoint: int, instances: tuple[int, ...], num_rows: int) -> None:
    """What computing the losses takes, and a button for it.

    Raises:
        UnsupportedRecipe, MissingFile, CorruptFile, …
    """
    command = frame.command("batch", run, step, "--losses", "--checkpoint", checkpoint)
    if data.shared():
        st.text("Their losses were not computed yet. Where the explorer runs, this does it, and they are kept:")
        st.code(command, language=None)
        return
    with st.spinner("Looking …"):
        plan = spike_data.losses_plan(data.version(), run, step, checkpoint, None)
    fetched = f", of which {plan['download']:,} bytes have to be fetched" if plan["download"] else ""
    st.text(
        f"This reads {plan['weights']:,} bytes of weights and {plan['rows'] - plan['kept']:,} of the step's "
        f"{plan['rows']:,} rows{fetched}. It takes about {max(plan['seconds'], 0.1):,.1f} s and "
        f"{plan['memory_bytes'] / 2**20:,.0f} MiB here, once: the losses are kept."
    )
    with st.container(horizontal=True):
        label = f"Colour by the loss under checkpoint {checkpoint}"
        every = st.button(label, type="primary", icon=":material/palette:")
        some = len(instances) < num_rows and st.button("Only these rows")
    st.code(command, language=None)
    if every or some:
        with st.spinner("Computing …"):
            notes = spike_data.compute_losses(run, step, checkpoint, None if every else instances)
        if not notes:
            st.rerun()
        for note in notes:
            st.text(frame.as_text(note))
