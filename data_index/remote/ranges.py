"""Many stretches of files at once: near ones together, far ones in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from data_index.files import require_free_space
from data_index.remote.parallel import side_by_side
from data_index.remote.path import REQUEST_BYTES, RemotePath
from data_index.remote.progress import Progress, tell

# Stretches with a gap between them become one request while the gaps stay below this share of what is needed.
MAX_GAP_SHARE = 0.04
MAX_GAP_BYTES = 64 * 1024

Stretch = tuple[RemotePath, int, int]


def bytes_to_fetch(stretches: Iterable[Stretch]) -> int:
    """Bytes of the stretches that are not kept yet; nothing is fetched."""
    return sum(stop - start for parts in _missing(stretches).values() for start, stop in parts)


def fetch_ranges(stretches: Iterable[Stretch], progress: Progress | None = None) -> int:
    """Fetch what is not kept yet of stretches of files, in parallel; returns how many bytes that was.

    Near stretches of a file become one request while that costs little. What was fetched when one of them fails, or
    when the user interrupts, is kept.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
    """
    missing = _missing(stretches)
    parts = [
        (path, first, min(first + REQUEST_BYTES, stop))
        for path, gaps in missing.items()
        for start, stop in coalesced(gaps)
        for first in range(start, stop, REQUEST_BYTES)
    ]
    total = sum(stop - start for _, start, stop in parts)
    if not parts:
        return 0
    require_free_space(parts[0][0].cache, total, "what has to be fetched")
    if len(parts) == 1:
        path, start, stop = parts[0]
        path.fetch(start, stop)
        tell(total, total, progress)
    else:
        _fetch_parallel(parts, total, progress)
    for path in missing:
        path.check_whole()
    return total


def _fetch_parallel(parts: list[Stretch], total: int, progress: Progress | None) -> None:
    done = 0
    for (_, start, stop), _ in side_by_side(lambda part, abort: part[0].fetch(part[1], part[2], abort), parts):
        done += stop - start
        tell(done, total, progress)


def _missing(stretches: Iterable[Stretch]) -> Mapping[RemotePath, list[tuple[int, int]]]:
    """What is not kept, by file; stretches that overlap or touch are one."""
    wanted: dict[RemotePath, list[tuple[int, int]]] = {}
    for path, start, stop in stretches:
        if start < stop:
            wanted.setdefault(path, []).append((start, stop))
    missing: dict[RemotePath, list[tuple[int, int]]] = {}
    for path, parts in wanted.items():
        if path.copy() is not None:
            continue
        kept = path.kept()
        gaps = [gap for start, stop in _united(parts) for gap in kept.missing(start, stop)]
        if gaps:
            missing[path] = gaps
    return missing


def _united(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    united: list[tuple[int, int]] = []
    for start, stop in sorted(parts):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], stop))
        else:
            united.append((start, stop))
    return united


def coalesced(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join stretches across the smallest gaps, while all gaps together stay a small share of what is needed."""
    united = _united(parts)
    gaps = sorted((after[0] - before[1], number) for number, (before, after) in enumerate(pairwise(united)))
    allowed = MAX_GAP_SHARE * sum(stop - start for start, stop in united)
    bridged = set()
    for gap, number in gaps:
        if gap > min(allowed, MAX_GAP_BYTES):
            break
        allowed -= gap
        bridged.add(number)
    joined: list[tuple[int, int]] = []
    for number, (start, stop) in enumerate(united):
        if joined and number - 1 in bridged:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
