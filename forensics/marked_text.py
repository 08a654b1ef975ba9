"""A row's text with the span that stands out marked, and each token coloured by its loss."""

from __future__ import annotations

import codecs
import html
from dataclasses import dataclass

import numpy as np

from data_index.errors import ForensicsError
from data_index.run import Run
from data_index.text import load_tokenizer, token_bytes
from forensics.cli.output import printable

HIGHEST_LOSS = 12.0  # nats: the deepest colour
COLOUR = (213, 94, 0)  # Okabe and Ito's vermilion, over the page
DEPTHS = 24  # that are told apart
DEEPEST = 0.85  # of the colour: letters over it can be read
AROUND_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MarkedText:
    """A row as text.

    Attributes:
        pieces: the text of each token; of a run without a tokenizer, its ids.
        losses: nats, of each token; infinite where it is no number, NaN where the token is no target (as the first of a
            row).
        span: tokens start .. stop, half-open, that are marked; None: none.
    """

    title: str
    pieces: tuple[str, ...]
    losses: np.ndarray
    span: tuple[int, int] | None = None

    def plain(self) -> str:
        """For a terminal: the span between ⟦ and ⟧ with some text around it, or the beginning of the row."""
        start, stop = self.span or (0, len(self.pieces))
        inside = _shortened(shown("".join(self.pieces[start:stop])), 3 * AROUND_CHARACTERS)
        if self.span is None:
            return inside
        before = shown("".join(self.pieces[:start]))[-AROUND_CHARACTERS:]
        after = shown("".join(self.pieces[stop:]))[:AROUND_CHARACTERS]
        return f"{before}⟦{inside}⟧{after}"

    def as_html(self, *, titled: bool = True) -> str:
        """A paragraph in the classes of `colours_html`; everything from data is escaped."""
        parts = [f"<h3>{html.escape(printable(self.title))}</h3>"] if titled else []
        parts.append('<p class="losses">')
        for number, (piece, loss) in enumerate(zip(self.pieces, self.losses.tolist(), strict=True)):
            inside = self.span is not None and self.span[0] <= number < self.span[1]
            classes = f"{_depth(loss)} inside" if inside else _depth(loss)
            text = html.escape(shown(piece)).replace("⏎", "⏎\n")
            parts.append(f'<span class="{classes}" title="token {number}: {told_loss(loss)}">{text}</span>')
        return "".join([*parts, "</p>"])


def marked_text(
    run: Run,
    token_ids: np.ndarray,
    losses: np.ndarray,
    is_target: np.ndarray,
    title: str,
    span: tuple[int, int] | None,
) -> MarkedText:
    """
    Args:
        token_ids: [length]. losses, is_target: [length - 1], of the tokens from the second on.
    """
    by_token = np.concatenate([[np.nan], np.where(is_target, np.nan_to_num(losses, nan=np.inf), np.nan)])
    return MarkedText(title=title, pieces=pieces_of(run, token_ids), losses=by_token, span=span)


def pieces_of(run: Run, token_ids: np.ndarray) -> tuple[str, ...]:
    """The text that each token adds to the row; ids where no tokenizer tells.

    A character of several tokens comes with the last of them. A special token stands as its own name.
    """
    try:
        by_id, tokenizer = token_bytes(run), load_tokenizer(run)
    except ForensicsError:
        return tuple(f"{token} " for token in token_ids.tolist())
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = []
    for token in token_ids.tolist():
        content = by_id[token] if token < len(by_id) else b""
        pieces.append(decoder.decode(content) if content else tokenizer.id_to_token(token) or f"[{token}]")
    return tuple(pieces)


def shown(text: str) -> str:
    """Text from data as text: line ends as ⏎, what a terminal or page would obey escaped."""
    return printable(text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "→"))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def told_loss(loss: float) -> str:
    return "no target" if np.isnan(loss) else f"{loss:.2f} nats" if np.isfinite(loss) else "no number"


def _depth(loss: float) -> str:
    """The class of a loss: how deep its colour is; `none` of what is no target, `broken` of what is no number."""
    if not np.isfinite(loss):
        return "none" if np.isnan(loss) else "broken"
    return f"d{round(DEPTHS * min(max(loss, 0.0) / HIGHEST_LOSS, 1.0))}"


def colours_html(*, dark: bool = False) -> str:
    """The style of coloured text. Readers who cannot tell colours see light go to dark, on a dark page the reverse."""
    rules = [
        "p.losses{font-family:monospace;white-space:break-spaces;overflow-wrap:anywhere;line-height:1.7;direction:ltr}",
        "p.losses span{unicode-bidi:isolate}",
        f"p.losses .none{{color:{'#8A929A' if dark else '#6B737B'}}}",
        f"p.losses .broken{{background:{'#FFFFFF;color:#000000' if dark else '#000000;color:#FFFFFF'}}}",
        f"p.losses .inside{{border-bottom:2px solid {'#56B4E9' if dark else '#0072B2'}}}",
        "p.scale span{padding:0 6px;font-family:monospace}",
    ]
    for depth in range(DEPTHS + 1):
        red, green, blue = _over(14 if dark else 255, depth / DEPTHS)
        rules.append(f".losses .d{depth},.scale .d{depth}{{background:rgb({red},{green},{blue})}}")
    return f"<style>{''.join(rules)}</style>"


def _over(page: int, depth: float) -> tuple[int, ...]:
    """The colour over a page of some grey."""
    return tuple(round(page + (channel - page) * DEEPEST * depth) for channel in COLOUR)


def legend_html() -> str:
    steps = [0.0, 3.0, 6.0, 9.0, HIGHEST_LOSS]
    boxes = "".join(f'<span class="{_depth(loss)}">{loss:g}</span>' for loss in steps)
    return (
        f'<p class="scale">Loss of each token, nats: {boxes} and more; grey: no target; the span that stands out is '
        "underlined.</p>"
    )
