"""A user's script under torchrun whose rank 1 is killed in its fourth step: python -m torch.distributed.run … FOLDER."""

from __future__ import annotations

import os
import signal
import sys

from execute.layouts import Layout
from execute.loops import SCORER, Task, job_of, rows

if __name__ == "__main__":
    job = job_of(Task(SCORER, SCORER.plan(Layout(tp=2))))
    for k in range(50):
        if k == 3 and job.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        job.train_step(rows(SCORER.batch(k), job))
        if k == 1:
            job.save(sys.argv[1])
            job.wait()
