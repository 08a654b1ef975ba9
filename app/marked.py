"""Text coloured by the loss of each token. Every piece of it is escaped; pages show text from data in no other HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import frame
from app.theme import is_dark
from forensics.marked_text import MarkedText, colours_html, legend_html, shown, told_loss

HEIGHT = 300  # of a long row's box
LONG, MANY_LINES = 1_500, 10  # characters and line ends; more are shown in a box that scrolls


def show_colours() -> None:
    """The scale, once on a page, and what the colours are."""
    st.html(colours_html(dark=is_dark()))
    st.html(legend_html())


def show_marked(text: MarkedText) -> None:
    whole = "".join(text.pieces)
    long = len(whole) > LONG or whole.count("\n") > MANY_LINES
    with st.container(border=True, height=HEIGHT if long else "content"):
        st.html(text.as_html(titled=False))


def show_losses(texts: Mapping[str, MarkedText], *, key: str) -> None:
    """The same as one table; the rows by what they are called."""
    rows = [row | {"row": name} for name, text in texts.items() for row in _rows(text)]
    with st.expander("The losses as a table", icon=":material/table:"):
        frame.show_table([{"row": row.pop("row"), **row} for row in rows], key=key, height=300)


def _rows(text: MarkedText) -> list[dict[str, Any]]:
    start, stop = text.span or (0, 0)
    return [
        {
            "token": number,
            "text": shown(piece),
            "loss": loss if math.isfinite(loss) else None,
            "note": "" if math.isfinite(loss) else told_loss(loss),
            "stands out": start <= number < stop,
        }
        for number, (piece, loss) in enumerate(zip(text.pieces, text.losses.tolist(), strict=True))
    ]
