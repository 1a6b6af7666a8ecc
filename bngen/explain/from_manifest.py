"""The report that a bundle's manifest holds: what was built, without its program.

In: a manifest as `bngen.manifest` writes it. Out: a `Report`. Stages, the plan at level ``none``,
and of a kernel what its sub-layers would move alone, what it overwrites and the record of its knobs
are not in a manifest, and so not in the report: it holds nothing of the first two, and None.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from bngen.errors import ToolchainError
from bngen.explain.moved import traffic
from bngen.explain.report import (
    ANCHOR,
    LOAD,
    STORE,
    KernelRow,
    Map,
    Refused,
    Report,
    SubLayer,
    totals_of,
)


def report_of_manifest(manifest: Mapping[str, Any]) -> Report:
    """Read a manifest.

    Raises:
        ToolchainError: for one that lacks what `bngen.manifest` writes.
    """
    try:
        rows = tuple(_row(kernel) for kernel in manifest["kernels"])
        refused = tuple(
            Refused(
                group["slot"], group["reason"], tuple(group["ops"]),
                tuple(tuple(word or "" for word in pair) for pair in group["pairs"]),
            )
            for group in manifest["refused"]
        )  # fmt: skip
        return Report(
            manifest["program"], manifest["fusion"], dict(manifest["target"]), (), rows, refused,
            totals_of(rows), memory=dict(manifest["memory"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        what = f"the manifest cannot be explained: {type(error).__name__}: {error}"
        raise ToolchainError(what, hint="build it again with bngen build") from None


def _row(kernel: Mapping[str, Any]) -> KernelRow:
    loads, anchors = kernel["slots"]
    reads, writes = (tuple(map(_map, kernel[side])) for side in ("inputs", "outputs"))
    slots = chain([LOAD] * loads, [ANCHOR] * anchors, *[[STORE] * len(kernel["sublayers"])])
    held = zip(kernel["sublayers"], slots, kernel["ops"], strict=False)
    return KernelRow(
        name=kernel["name"],
        call=kernel["call"],
        layer=kernel["layer"],
        work=kernel["work"],
        sublayers=tuple(SubLayer(op, slot, **told) for op, slot, told in held),
        reads=reads,
        writes=writes,
        traffic=traffic(reads, writes),
        traffic_alone=None,
        operations=kernel["operations"],
        strategy=kernel["rule"],
        declined=dict(kernel["declined"]),
        knobs=dict(kernel["knobs"]),
        record=None,
        overwritten=None,
        sources=tuple(kernel["sources"]),
        symbol=kernel["symbol"],
    )


def _map(value: Mapping[str, Any]) -> Map:
    return Map(value["name"], value["type"], value["layout"], value["bytes"], value["map"])
