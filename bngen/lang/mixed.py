"""Programs in mixed precision, made from programs in float32."""

from __future__ import annotations

from typing import Any

from bngen.lang.program import Program, graph_of
from bngen.lang.types import dtype_name
from bngen.passes import autocast as passes


def autocast(program: Any, dtype: Any = "bfloat16") -> Program:
    """A program with convolutions and matrix products in ``dtype``, as ``torch.autocast`` has them.

    What lies between them is stored in it, too; parameters, statistics, losses and what the program
    updates stay float32. Apply it before `grad`, `value_and_grad` and `training_step`::

        step = bg.training_step(bg.autocast(program), bg.SGD(lr=0.1))

    Args:
        program: a `Program` or its graph, in float32.
        dtype: a dtype that is only stored.

    Returns:
        A program of the same arguments and parameters. Results are of the dtype in which they come
        about: a loss float32, a map ``dtype``.

    Raises:
        ProgramError: for another dtype, or a program that holds gradients already.
    """
    graph = graph_of(program, "autocast")
    return Program.from_graph(passes.autocast(graph, dtype_name("autocast", dtype)))
