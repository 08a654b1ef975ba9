"""A file server on loopback as a public bucket is one: ranges, ETags, conditions, and any fault on demand."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate

from tests.servers.exchange import Answer, Asked, Resource, refusal, resource_of
from tests.servers.loopback import LoopbackServer


class RangeServer(LoopbackServer):
    """Serves `files`, which may be changed while it runs: paths that start with a slash, and their bytes."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.files: dict[str, bytes] = dict(files or {})
        self._known: dict[str, Resource] = {}

    def find(self, asked: Asked) -> Resource | Answer:
        content = self.files.get(asked.path)
        if content is None:
            return refusal(404)
        known = self._known.get(asked.path)
        if known is None or known.content is not content:  # hashed once, not at every range of it
            known = self._known[asked.path] = resource_of(content, modified=formatdate(usegmt=True))
        return known
