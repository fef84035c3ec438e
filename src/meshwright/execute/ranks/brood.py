"""The processes of one pool, seen from the parent: started, watched, ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Brood:
    """`ranks` processes, forked from one nursery."""

    def __init__(self, ranks: int, arguments: Sequence[str], key: bytes, folder: Path, environment: Mapping[str, str]):
        """`arguments`: address, meeting and timeout. Logs go to `folder`."""
        self.ranks = ranks
        self.pids: dict[int, int] = {}
        """By rank, of those that have been forked."""
        self._codes: dict[int, int] = {}
        self._text = b""
        command = [sys.executable, "-m", "meshwright.execute.ranks.nursery", *arguments]
        with (folder / "start.log").open("wb") as log:
            self._nursery = subprocess.Popen(
                [*command, str(os.getpid()), str(ranks), str(folder)],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its ranks
            )
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(key.hex().encode() + b"\n")
        self._nursery.stdin.close()

    def code(self, rank: int, timeout: float = 0.0) -> int | None:
        """How a rank ended, within `timeout` seconds; −9: killed by signal 9; None: it has not. A nursery that ended by
        itself has taken its ranks along."""
        deadline = time.monotonic() + timeout
        while rank not in self._codes:
            if not self._read(max(0.0, deadline - time.monotonic())):
                return None
        return self._codes[rank]

    def _read(self, timeout: float) -> bool:
        """Takes in what the nursery says; whether it said anything within `timeout` seconds."""
        pipe = self._nursery.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], timeout)[0]:
            return False
        read = os.read(pipe.fileno(), 1 << 16)
        if not read:
            ended = self._nursery.wait()
            self._codes = {rank: self._codes.get(rank, ended) for rank in range(self.ranks)}
        *lines, self._text = (self._text + read).split(b"\n")
        for line in lines:
            rank, what, number = line.split()
            (self.pids if what == b"pid" else self._codes)[int(rank)] = int(number)
        return True

    def forked(self) -> Mapping[int, int]:
        """Process ids by rank, waiting for the last one."""
        while len(self.pids) < self.ranks and len(self._codes) < self.ranks:
            self._read(1.0)
        return self.pids

    def end(self, grace: float) -> None:
        """Ends every process, by force after `grace` seconds. All are gone when it returns."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + grace
            for rank in range(self.ranks):
                if self.code(rank) is None and rank in self.pids:
                    with contextlib.suppress(ProcessLookupError):  # it has ended, the nursery is about to say so
                        os.kill(self.pids[rank], number)
            if len(self.pids) < self.ranks:  # those that it has forked without saying so end with it
                self._nursery.kill()
            for rank in range(self.ranks):
                self.code(rank, max(0.1, deadline - time.monotonic()))
        self._nursery.kill()
        self._nursery.wait()
        assert self._nursery.stdout is not None
        self._nursery.stdout.close()
