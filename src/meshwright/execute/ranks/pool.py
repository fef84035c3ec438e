"""A pool of rank processes on this machine that outlives single jobs: import torch once, run many programs.

    parent ──Unix socket──▶ rank 0 … n − 1       forked from one process that has imported torch (`nursery`)
       job: "module:function", payload      every rank calls function(context, payload); the parent collects results

Any rank that dies or fails ends the pool: the others may wait for it in a collective, so they are killed. Ranks end by
themselves when the parent is gone. Nothing listens on a network port: the ranks meet through a file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import ExecutionError, MeshwrightError
from .brood import Brood
from .device import one_each

Event = Callable[[int, Any], None]
START_SECONDS = 120.0
GRACE_SECONDS = 5.0
"""Between asking a rank to end and killing it."""


class Pool:
    """`ranks` processes that form one process group. A context manager; `close` leaves nothing running."""

    def __init__(self, ranks: int, *, timeout: float = 60.0, backend: str = "cpu") -> None:
        """`timeout`: seconds that a rank may wait in a collective. `backend`: "cpu", or "auto" to use GPUs.

        Raises:
            ExecutionError: a rank died, or has no GPU of its own.
        """
        self.ranks, self.timeout = ranks, timeout
        self._folder = Path(tempfile.mkdtemp(prefix="meshwright-"))
        self._brood: Brood | None = None
        self._links: list[Connection] = []
        try:
            self._start(backend)
        except BaseException:
            self.close()
            raise

    def _start(self, backend: str) -> None:
        if backend != "cpu":
            one_each(self.ranks)
        address, key = str(self._folder / "pool"), secrets.token_bytes(16)
        with Listener(address, "AF_UNIX", backlog=self.ranks, authkey=key) as listener:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                "MESHWRIGHT_DEVICE": "cpu" if backend == "cpu" else os.environ.get("MESHWRIGHT_DEVICE", ""),
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            }
            arguments = (address, str(self._folder / "meet"), str(self.timeout))
            self._brood = Brood(self.ranks, arguments, key, self._folder, environment)
            self._links = self._accept(listener)

    def _accept(self, listener: Listener) -> list[Connection]:
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + START_SECONDS
        inner: Any = listener._listener  # type: ignore[attr-defined]
        inner._socket.settimeout(1.0)
        while len(found) < self.ranks:
            try:
                link = listener.accept()
            except TimeoutError:
                self._check_alive("while starting")
                if time.monotonic() > deadline:
                    late = _named(r for r in range(self.ranks) if r not in found)
                    raise ExecutionError(f"{late} did not start within {START_SECONDS:.0f} s") from None
                continue
            found[link.recv()] = link
        return [found[r] for r in range(self.ranks)]

    # ------------------------------------------------------------------ jobs

    def run(self, function: str, payload: Any, *, timeout: float = 600.0, event: Event | None = None) -> list[Any]:
        """Results of function(context, payload) of every rank; "package.module:function".

        Raises:
            ExecutionError: a rank failed, died, or took longer than `timeout`; the pool is closed.
        """
        message = pickle.dumps((function, payload))
        try:
            for link in self._links:
                with contextlib.suppress(OSError):  # dead: collecting its answer says so
                    link.send_bytes(message)
            return self._collect(timeout, event)
        except BaseException:
            self.close()
            raise

    def _collect(self, timeout: float, event: Event | None) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, MeshwrightError] = {}
        deadline = time.monotonic() + timeout
        while len(results) + len(failures) < self.ranks:
            if failures:  # the others may hang: give them a moment to say the same, then stop
                deadline = min(deadline, time.monotonic() + 1.0)
            open_links = [k for k in range(self.ranks) if k not in results and k not in failures]
            ready = wait([self._links[k] for k in open_links], max(0.0, min(1.0, deadline - time.monotonic())))
            for rank in open_links:
                if self._links[rank] in ready:
                    self._receive(rank, results, failures, event)
            if time.monotonic() > deadline:
                break
        if failures:
            raise _worst(failures)
        if len(results) < self.ranks:
            late = _named(r for r in range(self.ranks) if r not in results)
            raise ExecutionError(f"{late} did not answer within {timeout:.0f} s")
        return [results[r] for r in range(self.ranks)]

    def _receive(
        self, rank: int, results: dict[int, Any], failures: dict[int, MeshwrightError], event: Event | None
    ) -> None:
        try:
            kind, value = pickle.loads(self._links[rank].recv_bytes())
        except (EOFError, OSError):
            failures[rank] = self._death(rank)
            return
        if kind == "event":
            if event is not None:
                event(rank, value)
        elif kind == "result":
            results[rank] = value
        else:
            failures[rank] = value

    # ---------------------------------------------------------------- deaths

    def _death(self, rank: int) -> ExecutionError:
        assert self._brood is not None
        error = Died(rank, self._brood.code(rank, 2.0), self.ranks - 1)
        error.hint = self.log(rank)
        return error

    def _check_alive(self, when: str) -> None:
        assert self._brood is not None
        for rank in range(self.ranks):
            if (code := self._brood.code(rank)) is not None:
                error = Died(rank, code, self.ranks - 1, when)
                error.hint = self.log(rank)
                raise error

    def log(self, rank: int) -> str:
        """What a rank wrote, its last lines; of one that never was what kept it from being."""
        for name in (f"rank-{rank}.log", "start.log"):
            file = self._folder / name
            if file.exists():
                return "\n".join(file.read_text(errors="replace").splitlines()[-20:])
        return ""

    def processes(self) -> list[int]:
        """Process ids, by rank."""
        found = self._brood.forked() if self._brood else {}
        return [found[rank] for rank in sorted(found)]

    def whole(self) -> bool:
        """Whether it is open and every rank is alive."""
        brood = self._brood
        return brood is not None and all(brood.code(rank) is None for rank in range(self.ranks))

    def close(self) -> None:
        """Ends every rank, by force after a few seconds."""
        for link in self._links:
            link.close()
        if self._brood is not None:
            self._brood.end(GRACE_SECONDS)
        self._links, self._brood = [], None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Died(ExecutionError):
    """A rank ended by itself."""

    def __init__(self, rank: int, code: int | None, others: int, when: str = "") -> None:
        self.rank, self.others = rank, others
        if code is not None and code < 0:
            self.how = f"was killed by signal {-code}"
        else:
            self.how = f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            self.signal = signal.Signals(-(code or 0)).name if (code or 0) < 0 else ""
        super().__init__(self.sentence(when))

    def sentence(self, when: str = "") -> str:
        text = f"rank {self.rank} {self.how}{' ' + when if when else ''}"
        if self.others == 1:
            return f"{text}; the other was stopped"
        return f"{text}; the other {self.others} were stopped" if self.others else text


def _named(ranks: Iterable[int]) -> str:
    """ "rank 3", "ranks 3, 5"."""
    found = [str(r) for r in ranks]
    return f"{'rank' if len(found) == 1 else 'ranks'} {', '.join(found)}"


def _worst(failures: dict[int, MeshwrightError]) -> MeshwrightError:
    """A death explains more than a failure, a failure of our own more than a lost connection."""
    order = sorted(failures, key=lambda r: (not isinstance(failures[r], Died), failures[r].code == "lost", r))
    return failures[order[0]]
