"""From what a user writes after --cluster to a `Cluster`: "h100x64", "local", "localx4" or a path to a TOML file."""

from __future__ import annotations

import re
from pathlib import Path

from .._spelling import nearest
from ..errors import InputError
from .model import Cluster
from .presets import Preset, local, presets

_COUNTED = re.compile(r"(.+?)x(\d{1,18})")


def is_local(spec: str) -> bool:
    """Whether it names this machine: "local" or "localx4"."""
    counted = _COUNTED.fullmatch(spec)
    return spec == "local" or bool(counted and counted[1] == "local" and int(counted[2]) > 0)


def resolve(spec: str) -> Cluster:
    """The cluster that `spec` names.

    Raises:
        InputError: an unknown name, a count that leaves a node part full, or a faulty file.
    """
    if spec.endswith(".toml") or "/" in spec:
        from .toml import read

        return read(Path(spec))
    if spec == "local":
        return local()
    counted = _COUNTED.fullmatch(spec)
    if counted and is_local(spec):
        return local(int(counted[2]))
    if counted and counted[1] in presets():
        preset = presets()[counted[1]]
        _check_count(spec, preset, int(counted[2]))
        return preset.cluster(int(counted[2]), name=spec)
    if spec in presets():
        raise InputError(f"{spec} says no count: write {spec}x{presets()[spec].node} for one node", where="--cluster")
    known = [*presets(), "local"]
    near = nearest(counted[1] if counted else spec, known)
    listed = f'"meshwright clusters" lists {len(known)}; a file ends in .toml'
    hint = f"did you mean {near}{'x' + counted[2] if counted else ''}? ({listed})" if near else listed
    raise InputError(f'no cluster "{spec}": {hint}', where="--cluster")


def _check_count(spec: str, preset: Preset, count: int) -> None:
    node = preset.node
    if count and (count <= node or count % node == 0):
        return
    below, above = count // node * node, (count // node + 1) * node
    near = [n for n in (below or 1, above) if n] if count else [1, node]
    named = " and ".join(f"{preset.name}x{n}" for n in near)
    raise InputError(
        f"{spec}: nodes of {preset.name} hold {node}, so the count is 1 to {node} or a multiple of {node}; "
        f"nearest are {named}",
        where="--cluster",
    )


def describe(cluster: Cluster) -> str:
    """One line: "8 nodes of 8 H100-80GB, NVLink 450 GB/s, InfiniBand 50 GB/s per GPU"."""
    if cluster.homogeneous:
        devices = _plain_nodes(cluster)
    else:
        counts = [0] * len(cluster.types)
        for t in cluster.device:
            counts[t] += 1
        devices = " + ".join(f"{n:,} {t.name}" for n, t in zip(counts, cluster.types, strict=True))
    links = [f"{lv.name} {_rate(lv.bandwidth)}" for lv in cluster.levels]
    if len(links) > 1:
        links[-1] += " per GPU" if cluster.types[0].kind == "gpu" else " per device"
    return ", ".join([devices, *links])


def _plain_nodes(cluster: Cluster) -> str:
    name = cluster.types[0].name
    if not cluster.levels:
        return f"{cluster.count:,} {name}"
    inner = cluster.levels[0]
    nodes = -(-cluster.count // inner.size) if inner.size else len(set(inner.member))
    if nodes == 1:
        return f"1 node of {cluster.count:,} {name}"
    if inner.size:
        return f"{nodes:,} nodes of {inner.size:,} {name}"
    return f"{cluster.count:,} {name} in {nodes:,} nodes"


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / 1e9:.4g} GB/s"
