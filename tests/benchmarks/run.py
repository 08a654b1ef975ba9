"""All benchmarks, one after another: `make bench`, or `python -m tests.benchmarks.run [NAME…]`.

Each prints its figures with the machine they were measured on; what is worth keeping goes to RESULTS.md by hand, with
the date. Ratios are measured inside one run, in interleaved pairs, because other work may share the cores.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

# One thread everywhere, before any library is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(names: list[str]) -> None:
    from tests.benchmarks import (
        attribution_cost,
        content_signals,
        continuity,
        documents,
        explorer,
        exposures,
        index_build,
        orders,
        planted_faults,
        probe_reads,
        probe_sweep,
        remote,
        repeats,
        replay_overhead,
        spike_causes,
        spikes,
        startup,
        text_search,
        token_paths,
        undertrained,
    )

    benchmarks: dict[str, Callable[[], None]] = {
        "startup": startup.main,
        "index_build": index_build.main,
        "orders": orders.main,
        "replay_overhead": replay_overhead.main,
        "remote": remote.main,
        "continuity": continuity.main,
        "repeats": repeats.main,
        "content_signals": content_signals.main,
        "exposures": exposures.main,
        "planted_faults": planted_faults.main,
        "documents": documents.main,
        "text_search": text_search.main,
        "undertrained": undertrained.main,
        "token_paths": token_paths.main,
        "probe_sweep": probe_sweep.main,
        "attribution_cost": attribution_cost.main,
        "probe_reads": probe_reads.main,
        "spikes": spikes.main,
        "spike_causes": spike_causes.main,
        "explorer": explorer.main,
    }
    import duckdb
    import numpy
    import torch

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), numpy {numpy.__version__}, "
        f"duckdb {duckdb.__version__}"
    )
    for name in names or benchmarks:
        print(f"\n== {name}")
        benchmarks[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
