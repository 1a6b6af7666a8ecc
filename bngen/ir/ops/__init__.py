"""THE op table: for each op its operands, attributes, shape rule, meaning in NumPy, and facets.

Nothing else in bngen lists op names to decide what may be done: passes and lowerings ask for an
op's *kind* and for the other facets of its row (see `row.OpDef`).

========== =====================================================================================
kind       what it promises
========== =====================================================================================
pointwise  each element of the result depends on one element of each operand (NumPy broadcasting;
           operands named in ``channel`` are vectors ``[C]`` that run along axis 1; of what
           ``gathers``, on one that lies elsewhere)
reduce     folds axes of one operand; a reduction over ``n h w`` can join a store loop
contract   a sum of products: convolutions in three directions, matrix product
window     a pool or its gradient: a small window over ``h w``
view       moves no data by itself: concatenation, slice, reshape
copy       the same tensor somewhere else, perhaps in another layout
collective computed of what several processes have; a step that is no kernel
coarse     rewritten into the above by fission before anything is fused
========== =====================================================================================

Meanings follow ``torch.nn.functional`` where an op exists there; they work in whatever float type
the arrays have, which makes the same table a float64 reference. The rows stand in families, a
module each, and are joined here.
"""

from __future__ import annotations

from typing import Any

from bngen.ir.attributes import attribute_misfit, type_misfit
from bngen.ir.ops.activations import ACTIVATIONS
from bngen.ir.ops.batch_norm import BATCH_NORM
from bngen.ir.ops.batch_norm_grad import BATCH_NORM_GRAD
from bngen.ir.ops.collective import COLLECTIVE
from bngen.ir.ops.conv import CONTRACT
from bngen.ir.ops.gather import GATHER
from bngen.ir.ops.movement import MOVEMENT
from bngen.ir.ops.pointwise import POINTWISE
from bngen.ir.ops.pool import WINDOW
from bngen.ir.ops.random import RANDOM
from bngen.ir.ops.reduce import REDUCE
from bngen.ir.ops.resize import RESIZE
from bngen.ir.ops.row import OpDef, ShapeError, Types, check_dtypes, check_widened
from bngen.ir.types import Attrs, TensorType

FAMILIES = (
    POINTWISE,
    ACTIVATIONS,
    RANDOM,
    BATCH_NORM,
    BATCH_NORM_GRAD,
    REDUCE,
    CONTRACT,
    WINDOW,
    MOVEMENT,
    GATHER,
    RESIZE,
    COLLECTIVE,
)

OPS: dict[str, OpDef] = {row.name: row for family in FAMILIES for row in family}


def op_def(name: str) -> OpDef:
    """The row of an op; raises `ShapeError` for a name that is not in the table."""
    if name in OPS:
        return OPS[name]
    import difflib  # only on the way to an error

    near = difflib.get_close_matches(name, OPS, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ShapeError(f"unknown op {name!r}{hint}")


def infer(name: str, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Result types of an op; raises `ShapeError` for operands that do not fit."""
    row = op_def(name)
    check_dtypes(row, types)
    check_widened(row, types)
    results = row.infer(types, attrs)
    for result in results:
        if wrong := type_misfit(result):
            raise ShapeError(wrong)
    return results


def complete_attrs(name: str, given: dict[str, Any]) -> Attrs:
    """All attributes of an op, defaults filled in.

    Raises:
        ShapeError: for one that is unknown, missing, or not what it may be (`attributes`).
    """
    row = op_def(name)
    unknown = set(given) - set(row.defaults)
    merged = {**row.defaults, **given}
    missing = [k for k, v in merged.items() if v is ...]
    if unknown or missing:
        bad = f"unknown attributes {sorted(unknown)}" if unknown else f"missing {missing}"
        raise ShapeError(f"{name}: {bad}; it takes {sorted(row.defaults)}")
    if wrong := attribute_misfit(merged, row.kinds):
        raise ShapeError(wrong)
    return Attrs.of(**merged)
