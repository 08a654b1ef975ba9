"""Text coloured by the loss of each token. Every piece of it is escaped; pages show text from data in no other HTML."""

from __future__ import annotations

import streamlit as st

from app import frame
from app.charts import is_dark
from forensics.marked_text import MarkedText, colours_html, legend_html, shown, told_loss

HEIGHT = 300  # of a long row's box
LONG = 2_500  # characters


def show_colours() -> None:
    """The scale, once on a page, and what the colours are."""
    st.html(colours_html(dark=is_dark()))
    st.html(legend_html())


def show_marked(text: MarkedText) -> None:
    long = sum(map(len, text.pieces)) > LONG
    with st.container(border=True, height=HEIGHT if long else "content"):
        st.html(text.as_html(titled=False))


def show_losses(text: MarkedText, *, key: str) -> None:
    """The same as a table."""
    rows = [
        {"token": number, "text": shown(piece), "loss": None if loss != loss else loss, "said": told_loss(loss)}
        for number, (piece, loss) in enumerate(zip(text.pieces, text.losses.tolist(), strict=True))
    ]
    for row in rows:
        if row["said"] in ("no target", "no number"):
            row["loss"] = None
    start, stop = text.span or (0, 0)
    if text.span is not None:
        for number, row in enumerate(rows):
            row["span"] = "stands out" if start <= number < stop else ""
    frame.show_table(rows, key=key, height=280)
