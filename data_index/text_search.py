"""Occurrences of a text in token ids, whatever tokens it was made into: arrays in, places out.

An occurrence is a stretch of tokens whose bytes hold the text. In it exactly one token covers a given byte of the
text, the anchor; few tokens can be that, at few offsets (`Anchor`), and a table over the vocabulary finds them in one
pass over the tokens. From there both neighbours are followed token by token: at a given byte of the text a token either
continues the text, or runs over its end, or does not fit. Tokens that stand for no bytes are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_index.vocabulary import Vocabulary, looked_up

# The anchor is looked for among so many bytes of the text: more tokens than it takes to find a rare one.
ANCHOR_BYTES = 512
# Tables of a text have a row for each of its bytes; twice what a command line takes.
MAX_TEXT_BYTES = 2**18
# Tokens without bytes that are passed over one by one; behind longer runs the next token is looked up.
BLANKS_WALKED = 8
STRIDE = 2**19  # tokens whose intermediate arrays stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hits:
    """Occurrences among tokens: parallel int64 arrays.

    Attributes:
        first, stop: the tokens of each occurrence, half-open.
        cut_before, cut_after: anchors whose occurrence, if it is one, begins before the tokens or ends after them.
    """

    first: np.ndarray
    stop: np.ndarray
    cut_before: np.ndarray
    cut_after: np.ndarray


class TextMatcher:
    """Tables of one text over one vocabulary.

    A *state* is a byte of the text at which a token has to begin (to the right) or before which it has to end (to the
    left).
    """

    def __init__(self, vocabulary: Vocabulary, text: bytes) -> None:
        """
        Args:
            text: at least a byte.
        """
        self.vocabulary = vocabulary
        self.text = text
        self.size = len(text)
        # A token has at least a byte, but for those without any.
        self.reach = min(self.size, 4096) + 64
        self.num_tokens = vocabulary.size
        lengths = np.unique(vocabulary.length[vocabulary.length > 0])
        self._lengths: list[int] = lengths.tolist()
        # Column of a token in `_inside`; tokens without bytes and the wall have the last one, where nothing fits.
        self._column = np.where(vocabulary.length > 0, np.searchsorted(lengths, vocabulary.length), len(lengths))
        self._inside = self._ranks_inside()
        ranks = vocabulary.forwards, vocabulary.backwards
        self._over_end, self._over_start = (np.zeros((self.size + 1, 2), dtype=np.int32) for _ in range(2))
        for size in range(1, min(self.size, vocabulary.longest) + 1):
            self._over_end[self.size - size] = ranks[0].beginning_with(text[self.size - size :])
            self._over_start[size] = ranks[1].beginning_with(text[:size][::-1])
        self._containing = list(self._tokens_containing())
        self._anchors: dict[int, Anchor] = {}

    def _ranks_inside(self) -> np.ndarray:
        """The rank of the text's bytes state .. state + length, by state and column; -1 where no token spells them."""
        found = np.full((self.size + 1, len(self._lengths) + 1), -1, dtype=np.int32)
        number = self.vocabulary.forwards.number
        for column, length in enumerate(self._lengths):
            if (states := self.size - length + 1) > 0:
                found[:states, column] = [number.get(self.text[s : s + length], -1) for s in range(states)]
        return found

    def _tokens_containing(self) -> Iterator[tuple[int, int]]:
        """(token, offset) where a token holds the whole text with bytes before and after it."""
        for token, piece in enumerate(self.vocabulary.pieces):
            at = piece.find(self.text, 1) if len(piece) > self.size + 1 else -1
            while 0 <= at < len(piece) - self.size:
                yield token, -at
                at = piece.find(self.text, at + 1)

    # --- anchors ---------------------------------------------------------------------------------------------------

    def anchor(self, sample: np.ndarray) -> Anchor:
        """The anchor whose tokens are rarest in a sample of tokens."""
        return self.anchor_at(int(np.argmin(self._candidates(sample))))

    def anchors(self, sample: np.ndarray, count: int) -> list[Anchor]:
        """Some anchors, rare ones first, spread over the text."""
        order = np.argsort(self._candidates(sample), kind="stable").tolist()
        chosen: list[int] = []
        for byte in order:
            if len(chosen) < count and all(abs(byte - other) > 3 for other in chosen):
                chosen.append(byte)
        return [self.anchor_at(byte) for byte in chosen]

    def anchor_at(self, byte: int) -> Anchor:
        if byte not in self._anchors:
            self._anchors[byte] = Anchor(self, *self._placements(byte))
        return self._anchors[byte]

    def _candidates(self, sample: np.ndarray) -> np.ndarray:
        """How many placements of the sample's tokens cover each byte of the text, those that cover it all left out."""
        vocabulary, bytes_ = self.vocabulary, min(self.size, ANCHOR_BYTES)
        tokens = np.minimum(sample.astype(np.int64), vocabulary.size)
        counts = np.bincount(tokens, minlength=vocabulary.size + 1)[:-1]
        forwards, backwards = vocabulary.forwards.counts(counts), vocabulary.backwards.counts(counts)
        change = np.zeros(self.size + 1)
        for column, length in enumerate(self._lengths):
            ranks = self._inside[:bytes_, column]
            weight = np.where(ranks >= 0, forwards[ranks], 0)
            change[:bytes_] += weight
            stops = np.minimum(np.arange(len(weight)) + length, self.size)
            np.subtract.at(change, stops, weight)
        before, behind = np.append(0, np.cumsum(backwards)), np.append(0, np.cumsum(forwards))
        starts = before[self._over_start[:, 1]] - before[self._over_start[:, 0]]
        change[0] += starts.sum()
        change -= starts
        ends = behind[self._over_end[:, 1]] - behind[self._over_end[:, 0]]
        change += ends
        return np.cumsum(change)[:bytes_]

    def _placements(self, byte: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and the offsets in the text at which they begin (below 0: before it) so that they cover a byte."""
        vocabulary, size = self.vocabulary, self.size
        tokens = [np.array([token for token, _ in self._containing], dtype=np.int64)]
        offsets = [np.array([offset for _, offset in self._containing], dtype=np.int64)]

        def place(found: np.ndarray, offset: int | np.ndarray) -> None:
            tokens.append(found)
            offsets.append(np.broadcast_to(np.asarray(offset, dtype=np.int64), found.shape))

        for column, length in enumerate(self._lengths):
            for state in range(max(byte - length + 1, 0), byte + 1):
                rank = int(self._inside[state, column])
                if rank >= 0:
                    place(vocabulary.forwards.tokens(rank, rank + 1), state)
        for held in range(byte + 1, min(size, vocabulary.longest - 1) + 1):
            found = vocabulary.backwards.tokens(*self._over_start[held])
            found = found[vocabulary.length[found] > held]
            place(found, held - vocabulary.length[found])
        for held in range(size - byte, min(size, vocabulary.longest - 1) + 1):
            found = vocabulary.forwards.tokens(*self._over_end[size - held])
            place(found[vocabulary.length[found] > held], size - held)
        return np.concatenate(tokens), np.concatenate(offsets)

    # --- following -------------------------------------------------------------------------------------------------

    def following(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may follow in a state, and the states that they lead to (`size` where the text is over)."""
        vocabulary = self.vocabulary
        ranks = self._inside[state]
        inside = [vocabulary.forwards.tokens(rank, rank + 1) for rank in ranks[ranks >= 0].tolist()]
        over = vocabulary.forwards.tokens(*self._over_end[state])
        blank = np.flatnonzero(vocabulary.blank)
        tokens = np.concatenate([*inside, over[vocabulary.length[over] > self.size - state], blank])
        return tokens, np.minimum(state + vocabulary.length[tokens], self.size)

    def follow_right(self, tokens: np.ndarray, place: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Where occurrences end that hold a text's bytes before `state` up to the token at `place`.

        Returns:
            The place of the last token; -1 where it is no occurrence, len(tokens) where that shows behind the tokens.
        """
        last = np.where(state >= self.size, place, -1)
        going = np.flatnonzero(state < self.size)
        place, state = place[going], state[going]
        while len(going):
            place = self._next_place(tokens, place, 1)
            cut = place >= len(tokens)
            last[going[cut]] = len(tokens)
            going, place, state = going[~cut], place[~cut], state[~cut]
            token = tokens[place]
            rank = looked_up(self.vocabulary.forwards.of_token, token)
            over = (self._over_end[state, 0] <= rank) & (rank < self._over_end[state, 1])
            last[going[over]] = place[over]
            inside = (self._inside[state, looked_up(self._column, token)] == rank) & ~over
            state = (state + looked_up(self.vocabulary.length, token))[inside]
            going, place = going[inside], place[inside]
        return last

    def follow_left(self, tokens: np.ndarray, place: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Where occurrences begin that hold a text's bytes from `state` on from the token at `place`.

        Returns:
            The place of the first token; len(tokens) where it is no occurrence, -1 where that shows before the tokens.
        """
        first = np.where(state <= 0, place, len(tokens))
        going = np.flatnonzero(state > 0)
        place, state = place[going], state[going]
        while len(going):
            place = self._next_place(tokens, place, -1)
            cut = place < 0
            first[going[cut]] = -1
            going, place, state = going[~cut], place[~cut], state[~cut]
            token = tokens[place]
            rank = looked_up(self.vocabulary.backwards.of_token, token)
            over = (self._over_start[state, 0] <= rank) & (rank < self._over_start[state, 1])
            first[going[over]] = place[over]
            state = state - looked_up(self.vocabulary.length, token)
            fits = self._inside[np.maximum(state, 0), looked_up(self._column, token)]
            inside = (fits == looked_up(self.vocabulary.forwards.of_token, token)) & (state > 0) & ~over
            going, place, state = going[inside], place[inside], state[inside]
        return first

    def _next_place(self, tokens: np.ndarray, place: np.ndarray, step: int) -> np.ndarray:
        """The next token with bytes, to the right (step 1) or left (-1); -1 or len(tokens) where there is none."""
        place = place + step
        for _ in range(BLANKS_WALKED):
            token = tokens[np.clip(place, 0, len(tokens) - 1)]
            blank = looked_up(self.vocabulary.blank, token) & (place >= 0) & (place < len(tokens))
            if not blank.any():
                return place
            place = place + step * blank
        solid = np.flatnonzero(~looked_up(self.vocabulary.blank, tokens))
        if step > 0:
            return np.append(solid, len(tokens))[np.searchsorted(solid, place)]
        return np.append(-1, solid)[np.searchsorted(solid, place, side="right")]


class Anchor:
    """The tokens that can cover one byte of the text, and where in the text each then begins."""

    def __init__(self, matcher: TextMatcher, tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.matcher = matcher
        self.tokens, self.offsets = tokens, offsets
        size = matcher.vocabulary.size
        whole = (offsets <= 0) & (offsets + matcher.vocabulary.length[tokens] >= matcher.size)
        self._whole = np.zeros(size + 1, dtype=bool)
        self._whole[tokens[whole]] = True
        partial = np.flatnonzero(~whole)
        partial = partial[np.argsort(tokens[partial], kind="stable")]
        self._offsets = offsets[partial]
        self._count = np.bincount(tokens[partial], minlength=size + 1)
        self._first = np.cumsum(self._count) - self._count
        self._table = self._whole | (self._count > 0)

    def places(self, tokens: np.ndarray) -> np.ndarray:
        """Where the anchor's tokens stand, rising."""
        found = [
            start + np.flatnonzero(looked_up(self._table, tokens[start : start + STRIDE]))
            for start in range(0, len(tokens), STRIDE)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def hits(self, tokens: np.ndarray, places: np.ndarray) -> Hits:
        """The occurrences whose anchor stands at one of the places, which hold tokens of the anchor."""
        matcher, token = self.matcher, tokens[places]
        complete = places[looked_up(self._whole, token)]
        count = looked_up(self._count, token)
        row = np.repeat(np.arange(len(places)), count)
        number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        place = places[row]
        offset = self._offsets[looked_up(self._first, token)[row] + number]
        length = looked_up(matcher.vocabulary.length, token)[row]
        last = matcher.follow_right(tokens, place, offset + length)
        possible = last >= 0
        place, last = place[possible], last[possible]
        first = matcher.follow_left(tokens, place, offset[possible])
        cut_before, cut_after = first < 0, (last == len(tokens)) & (first < len(tokens))
        found = (first >= 0) & (first < len(tokens)) & (last < len(tokens))
        return Hits(
            first=np.concatenate([complete, first[found]]),
            stop=np.concatenate([complete, last[found]]) + 1,
            cut_before=np.unique(place[cut_before]),
            cut_after=np.unique(place[cut_after]),
        )


def merged(first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The union of half-open ranges, as ranges that rise and do not touch one another."""
    if not len(first):
        return first, stop
    if (first[1:] < first[:-1]).any():
        order = np.argsort(first, kind="stable")
        first, stop = first[order], stop[order]
    reached = np.maximum.accumulate(stop)
    begins = np.append(True, first[1:] > reached[:-1])
    return first[begins], reached[np.append(np.flatnonzero(begins)[1:] - 1, len(first) - 1)]
