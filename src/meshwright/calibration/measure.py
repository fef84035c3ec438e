"""`meshwright calibrate`: times this machine's kernels and collectives, and makes a profile of them.

one rank a GPU, or one a core ─▶ kernels, all ranks at the same time ─▶ deduce.py ─▶ [family], [device]
several ranks                 ─▶ collectives of every size of group  ─▶ links.py  ─▶ [link]
GPU                           ─▶ a thin model, eager and compiled    ─▶ floors.py ─▶ [software]
small steps: our own runtime on a CPU, plain torch on a GPU          ─▶ stack.py  ─▶ [software], on a CPU [family] too
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cluster.model import DeviceType
from . import links
from .deduce import Deduced, Timed, deduce
from .floors import floors
from .kernels import every, kernels
from .machine import device_type, here
from .own_runs import own_steps
from .profile import Local, Measured, Profile
from .stack import OF_SOFTWARE, guessed, learn_stack
from .timing import Timing, in_turns
from .torch_runs import torch_steps

ROUNDS, QUICK_ROUNDS = 11, 3
Say = Callable[[str, int, int], None]
"""(what is measured, done, of how many)."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What one rank timed: names of kernels, because what makes them does not travel."""

    names: tuple[str, ...]
    timings: tuple[Timing, ...]


def _silent(what: str, done: int, total: int) -> None:
    """No progress wanted."""


def measure(*, ranks: int = 0, quick: bool = False, name: str = "local", say: Say = _silent) -> Profile:
    """The profile of this machine. Takes one to three minutes; `quick`: under one, with fewer repeats.

    Args:
        ranks: processes that share the machine; 0: one a GPU, or one a core.

    Raises:
        ExecutionError: a rank died.
    """
    device, count, machine = here(ranks)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    assumed, known = device_type(device, machine, count)
    busy = count if device.type == "cuda" else min(count, machine.cores)
    say("kernels", 0, rounds)
    if count == 1:
        timed = _timed(device, [time_kernels(device, rounds, lambda k: say("kernels", k, rounds))])
        wire = links.Found()
    else:
        from ..execute.ranks.pool import Pool

        with Pool(count, backend="auto", timeout=600) as pool:
            ask = (rounds, busy)
            event = _only_first(lambda k: say("kernels", k, rounds))
            found = pool.run("meshwright.calibration.jobs:kernels", ask, event=event)
            timed = _timed(device, [f for f in found if f is not None])
            wire = links.measure(pool, count, machine.cores, device.type, rounds, say)
    deduced = deduce(timed, assumed, known=known)
    deduced = replace(deduced, device=_with_copies(deduced.device, timed))
    generations, missing = _floors(device, quick, say)
    if wire.software:
        generations["eager"] = {**generations.get("eager", {}), **wire.software}
    measured = _evidence(timed, deduced) | dict(wire.measured)
    family = {**deduced.family, **_units(device), **wire.family}
    cores = 0 if device.type == "cuda" else machine.cores
    profile = Profile(
        name,
        "modern" if device.type == "cuda" else "eager",
        machine,
        Local(deduced.device, count, cores, wire.bandwidth, wire.latency),
        {deduced.device.family: family},
        generations,
        measured,
        "; ".join([f"measured on this machine: {len(measured)} timings, medians of {rounds} rounds", *missing]),
    )
    if device.type == "cpu":
        return _with_own_steps(profile, say)
    for software in _generations(quick):
        profile = _with_torch_steps(profile, device, software, say)
    return profile


TRUST = 0.25
"""In constants that single kernels give, when whole steps speak: on a CPU light ops differ by what they compute."""


def _with_own_steps(profile: Profile, say: Say) -> Profile:
    """The profile after small steps of our own runtime."""
    steps = own_steps(profile, say)
    generation = {**profile.generations, profile.software: {**ALONE, **profile.generations.get(profile.software, {})}}
    start = replace(profile, generations=generation)
    learnt = learn_stack(
        steps, name=profile.name, software=profile.software, base=start, prior=guessed(TRUST), check=False
    )
    return replace(learnt.profile, source=f"{profile.source}; {len(steps)} steps of small models")


def _generations(quick: bool) -> tuple[str, ...]:
    """Generations of software whose whole steps are run on a GPU; compiling takes a minute."""
    return ("eager",) if quick else ("eager", "modern")


def _with_torch_steps(profile: Profile, device: torch.device, software: str, say: Say) -> Profile:
    """The profile after small steps in plain torch, of one generation of software."""
    say(f"{software} steps", 0, 1)
    try:
        steps = torch_steps(profile, device, software, compiled=software == "modern")
    except Exception as error:  # what a compiler or an older torch cannot do: the kernels alone stay, and it is said
        return replace(
            profile, source=f"{profile.source}; no whole steps of {software} software ({type(error).__name__})"
        )
    learnt = learn_stack(
        steps,
        name=profile.name,
        software=software,
        base=profile,
        prior=guessed(TRUST_GPU, OF_SOFTWARE),
        check=False,
    )
    say(f"{software} steps", 1, 1)
    source = f"{profile.source}; {len(steps)} whole steps of {software} software"
    return replace(learnt.profile, software=profile.software, source=source)


TRUST_GPU = 0.5
"""The same on a GPU, where single kernels say more. Learnt from, four steps of GPT-2 and Llama blocks on one H200 are off by at
most 7 %, eager and compiled, where kernels alone leave 18 and 21 %."""
ALONE = {"overlap_data": 0.0, "overlap_sharded": 0.0, "overlap_tensor": 0.0, "straggle": 0.0}
"""Ranks of one machine: whoever moves bytes is a core, too, so nothing hides; and there is no other machine to wait for."""


def _units(device: torch.device) -> dict[str, float]:
    """Streaming multiprocessors of a GPU."""
    if device.type != "cuda":
        return {}
    return {"sms": torch.cuda.get_device_properties(device).multi_processor_count}


def _only_first(tell: Callable[[int], None]) -> Callable[[int, object], None]:
    """Events of rank 0; the others say the same."""

    def event(rank: int, value: object) -> None:
        if rank == 0 and isinstance(value, int):
            tell(value)

    return event


def time_kernels(
    device: torch.device,
    rounds: int,
    done: Callable[[int], None] = lambda round_: None,
    turn: Callable[[], object] = lambda: None,
) -> Timings:
    """Every kernel that the device can run, in turns."""
    wanted = kernels(device)
    works = [k.make(device) for k in wanted]
    issued = [k.kind == "launch" for k in wanted]
    timings = in_turns(works, rounds, device, turn=turn, done=done, issued=issued)
    return Timings(tuple(k.name for k in wanted), tuple(timings))


def _timed(device: torch.device, found: Sequence[Timings]) -> list[Timed]:
    """Kernels with the median over ranks of their timings."""
    by_name = {k.name: k for k in every(device)}
    out = []
    for column, name in enumerate(found[0].names):
        rows = [f.timings[column] for f in found]
        low, middle, high = (float(np.median([getattr(t, f) for t in rows])) for f in ("low", "seconds", "high"))
        out.append(Timed(by_name[name], Timing(middle, low, high, rows[0].repeats * len(rows))))
    return out


def _with_copies(device: DeviceType, timed: Sequence[Timed]) -> DeviceType:
    """The slower way between host and device, where it was measured."""
    rates = [t.kernel.nbytes / t.timing.seconds for t in timed if t.kernel.kind == "copy"]
    return replace(device, host_bandwidth=min(rates)) if rates else device


def _floors(device: torch.device, quick: bool, say: Say) -> tuple[dict[str, Mapping[str, float]], list[str]]:
    """Constants by generation of software: torch run op by op, and compiled (not if `quick`); and what did not work."""
    found: dict[str, Mapping[str, float]] = {}
    missing = []
    ways = [("eager", False), *([] if quick else [("modern", True)])] if device.type == "cuda" else []
    for k, (name, compiled) in enumerate(ways):
        say("floors", k, len(ways))
        try:
            found[name] = floors(device, compiled)
        except (
            Exception
        ) as error:  # compilers raise whatever they like; then the shipped constants stay, and it is said
            missing.append(f"no launch floors of {name} software ({type(error).__name__})")
    return found, missing


def _evidence(timed: Sequence[Timed], deduced: Deduced) -> dict[str, Measured]:
    return {
        t.kernel.name: Measured(
            t.timing.seconds, t.timing.low, t.timing.high, t.timing.repeats, deduced.predicted.get(t.kernel.name, 0.0)
        )
        for t in timed
    }
