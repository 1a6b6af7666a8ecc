"""What a node of a captured graph is to its user: the call, as it is written, and its line.

In: nodes as Dynamo makes them. Out: names and places for messages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import fx

from bngen.errors import SourceLoc

AROUND = "BNGEN_FALLBACK=1 runs this part of the model in PyTorch"
"""What a user can do about a mistake of bngen's."""

CALLS = METHOD, FUNCTION, MODULE = "call_method", "call_function", "call_module"
"""Kinds of nodes, as `torch.fx` has them; the others are arguments and the result."""

ATTRIBUTE = "get_attr"
"""The kind of those that are a tensor which the graph itself holds."""

_OWN = f"{Path(__file__).parent}{os.sep}"
"""Where layers of bngen's own are, which no model has written."""
_LINE = re.compile(r'\s*File "(.*)", line (\d+)')


def called(node: fx.Node) -> str:
    """What a node calls, as a user would write it."""
    if isinstance(node.target, str):
        return f"Tensor.{node.target}" if node.op == METHOD else node.target
    return getattr(node.target, "__name__", str(node.target))


def place_of(node: fx.Node) -> SourceLoc | None:
    """The model's own line that a node stems from, as Dynamo has noted it."""
    for line in reversed((node.meta.get("stack_trace") or "").splitlines()):
        found = _LINE.match(line)
        if found and not found[1].startswith(_OWN):
            return SourceLoc(found[1], int(found[2]))
    return None
