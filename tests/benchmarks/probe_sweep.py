"""What probes of the sample run cost: all 13 checkpoints, one thread; each probe alone, and all of them together.

"Together" is what a user types, `forensics probe demo all`; alone, each probe reads its checkpoints and builds its
models for itself. The forward pass of the held-out rows is the yardstick. Run on an idle machine.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from data_index.registration import add
from data_index.workspace import Workspace
from forensics.probe_catalogue import PROBES
from forensics.probe_options import ProbeOptions
from forensics.probing import Probed, probe
from forensics.sample_run import SampleSpec, train_sample_run

OPTIONS = ProbeOptions(threads=1, device="cpu")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trained = Path(folder) / "demo"
        train_sample_run(trained, SampleSpec())
        forward = _seconds(trained, "loss")[0]
        print(f"loss alone: {forward:.1f} s for 13 checkpoints, models and data included")
        alone = {name: _seconds(trained, name)[0] for name, one in PROBES.items() if one.in_all}
        for name, seconds in sorted(alone.items(), key=lambda item: -item[1]):
            print(f"  {name:<18} {seconds:6.1f} s, {seconds / forward:5.2f} x loss")
        together, found = _seconds(trained, "all")
        print(
            f"all {len(alone)} together: {together:.1f} s, {together / sum(alone.values()):.2f} of their sum; "
            f"{found.num_measured} checkpoints, {len(found.rows):,} numbers, {found.num_bytes:,} bytes of weights read"
        )
        coefficient = _seconds(trained, "learning-coefficient")[0]
        print(f"learning-coefficient alone (not in all): {coefficient:.1f} s, {coefficient / forward:.1f} x loss")


def _seconds(trained: Path, *names: str) -> tuple[float, Probed]:
    """From nothing: in a workspace where nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(trained, Path(folder) / "demo")
        workspace = Workspace(Path(folder) / "workspace")
        add(copy, workspace=workspace)
        began = time.perf_counter()
        found = probe("demo", *names, options=OPTIONS, workspace=workspace)
        return time.perf_counter() - began, found


if __name__ == "__main__":
    main()
