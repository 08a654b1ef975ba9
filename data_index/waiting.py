"""Long calls into C that Python cannot interrupt, made so that Ctrl-C and progress messages get through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
TICK_SECONDS = 10.0


def wait_for(function: Callable[[], Result], tick: Callable[[float], None]) -> Result:
    """Call a function in a thread of its own, and wait for it.

    The call must let go of the interpreter, as numpy's shuffle does. After Ctrl-C it is left to end with the process.

    Args:
        tick: told now and then how many seconds it has taken.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK_SECONDS)
        if thread.is_alive():
            tick(time.monotonic() - began)
    if failure:
        raise failure[0]
    return outcome[0]
