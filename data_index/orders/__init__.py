"""Order rules: which instance stands at which position of an epoch. One trainer's rule a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data_index.errors import UnknownLayout
from data_index.orders import file, olmo_core_fsl
from data_index.run import Run

# A rule is a function of the run and the 1-based epoch; it returns the instance at every position of that epoch.
RULES: Mapping[str, Callable[[Run, int], np.ndarray]] = {
    "file": file.epoch_order,
    "olmo_core_fsl": olmo_core_fsl.epoch_order,
}


def epoch_order(run: Run, epoch: int) -> np.ndarray:
    """Instances in consumption order for one epoch, unsigned integers of shape [positions].

    Raises:
        UnknownLayout: the run names a rule that this version does not know.
        CorruptFile, MissingFile: a recorded order is damaged.
    """
    rule = RULES.get(run.order.rule)
    if rule is None:
        raise UnknownLayout(f"{run.name} names the order rule {run.order.rule!r}; known rules: {', '.join(RULES)}")
    return rule(run, epoch)
