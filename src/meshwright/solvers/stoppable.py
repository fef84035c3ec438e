"""Long compiled searches that Ctrl-C and a budget can end."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Flag: TypeAlias = "NDArray[np.int8]"
"""One number; a kernel that reads 1 there returns as soon as it can, with nothing that counts."""
Tick: TypeAlias = Callable[[], None]
"""Called about every `EVERY` seconds; what it raises ends the search."""
EVERY = 0.05


def stoppable(call: Callable[[Flag], Any], tick: Tick | None) -> Any:
    """`call(flag)` so that Ctrl-C arrives and `tick` is asked; without `tick` simply called.

    Raises:
        What `tick` raises, or KeyboardInterrupt: the kernel has ended by then.
    """
    flag = np.zeros(1, np.int8)
    if tick is None:
        return call(flag)
    return waited(lambda: call(flag), tick, lambda: flag.fill(1))


def waited(work: Callable[[], Any], tick: Tick, stop: Callable[[], None]) -> Any:
    """What `work` returns, from a thread of its own; it must let go of Python's lock.

    Raises:
        What `tick` raises, or KeyboardInterrupt, after `stop` was called and `work` has returned. What `work` raises.
    """
    done = Event()  # Thread.join takes a thread for dead that Ctrl-C found it waiting for
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    Thread(target=run, daemon=True).start()
    try:
        while not done.wait(EVERY):
            tick()
    except BaseException:
        stop()
        done.wait()
        raise
    if failed:
        raise failed[0]
    return found[0]
