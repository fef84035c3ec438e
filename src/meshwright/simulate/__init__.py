"""What a plan costs before anyone pays for it: seconds, bytes, a timeline. Importing it loads no compiled kernel."""

from .._callable import make_callable
from .estimate import Work, collect, estimate, peak_bytes
from .fits import excess, fits
from .price import Pricer, StagePrice
from .result import Event, Lane, Simulation, TaskGraph
from .sends import sends_of
from .simulator import model_flops, simulate

__all__ = [
    "Event",
    "Lane",
    "Pricer",
    "Simulation",
    "StagePrice",
    "TaskGraph",
    "Work",
    "collect",
    "estimate",
    "excess",
    "fits",
    "model_flops",
    "peak_bytes",
    "sends_of",
    "simulate",
]

make_callable(__name__, "meshwright.api:simulate")
