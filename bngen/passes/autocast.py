"""Mixed precision: what `torch.autocast` does to a model, done to a graph.

In: a program in float32, before it is differentiated. Out: the same in which sums of products have
operands of a type that is only stored, and what lies between them is of that type, too. Parameters,
statistics, losses and updates stay as they are, and so do the types of all inputs. What an op does
with operands of such a type is a facet of its row (`OpDef.autocast`):

=========== ======================================================================================
``narrows`` operands are rounded, and the result (convolutions, matrix products)
``follows`` the result is of the type in which the operands meet (sums of maps, activations, pools,
            normalizations, whose vectors stay float32)
otherwise   it is computed, and stays, in float32: exponentials, logarithms, folds, and with them
            losses; what is only moved or chosen stays as it comes
=========== ======================================================================================

Rounding is explicit in the result: casts. Gradients of parameters are then float32 by themselves
(`bngen.passes.autodiff`).
"""

from __future__ import annotations

from collections.abc import Sequence

from bngen.dtypes import DTYPES
from bngen.errors import ProgramError
from bngen.ir.build import GraphBuilder, prune
from bngen.ir.node import Graph, Node
from bngen.ir.types import TensorType, Value
from bngen.passes.grad_rules import GRAD_RULES, NO_GRADIENT

Values = Sequence[Value | None]


def autocast(graph: Graph, dtype: str) -> Graph:
    """The program with operands of sums of products in ``dtype``; see the module's text.

    Before::

        y = conv2d(x, w);  z = relu(batch_norm(y, g));  return mean(z)

    After::

        y = cast(conv2d(cast(x), cast(w)))              bfloat16
        z = relu(cast(batch_norm(cast(y), g)))          bfloat16
        return mean(cast(z))                            float32

    Args:
        graph: a program.
        dtype: an element type that is only stored.

    Raises:
        ProgramError: for another element type, or a program that holds gradients already.
    """
    if dtype not in DTYPES or not DTYPES[dtype].stored_only:
        known = ", ".join(name for name, row in DTYPES.items() if row.stored_only)
        raise ProgramError(f"autocast: no program is computed in {dtype}", hint=f"use {known}")
    for node in graph.nodes:
        if node.op not in GRAD_RULES and node.op not in NO_GRADIENT:
            what = f"autocast: {graph.name} holds gradients already ({node.op})"
            hint = "autocast the program first, and then make its gradient or training step"
            raise ProgramError(what, loc=node.loc, hint=hint)
    return _Autocast(graph, dtype).run()


class _Autocast:
    """One walk; the builder knows what stands for each value by then."""

    def __init__(self, graph: Graph, dtype: str):
        self.graph, self.dtype, self.wide = graph, dtype, DTYPES[dtype].computed
        self.b = GraphBuilder.rewriting(graph, copies=False)
        self.consumers, self.results = graph.consumers(), set(graph.results())
        self.rounded: dict[Value, Value] = {}
        self.numbers: set[Value] = set()

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self.b.loc = node.loc
            operands = [v and self.b.resolve(v) for v in node.inputs]
            results = self.results_of(node, operands)
            for old, new in zip(node.outputs, results, strict=True):
                self.b.replace(old, new)
            if self.is_number(node, operands):
                self.numbers.update(results)
        self.b.loc = None
        updates = [
            (target, self.to(self.b.resolve(new), target.dtype))
            for target, new in self.graph.updates
        ]
        return prune(self.b.finish(updates=updates))

    def results_of(self, node: Node, operands: Values) -> tuple[Value, ...]:
        """What stands for a node's results."""
        row = node.row
        if row.converts and operands[0].dtype == node.out.dtype:  # autocast before
            return (operands[0],)
        if row.autocast == "narrows" and all(v.dtype in (self.dtype, self.wide) for v in operands):
            narrow = [self.narrowed(v) for v in operands]
            if self.is_finished_later(node):
                return self.emitted(node, narrow)
            return self.rounded_first(node, narrow)
        if all(v is None or v.dtype != self.dtype for v in operands):
            finishes = self.finishes(node, operands)
            return self.rounded_first(node, operands) if finishes else self.emitted(node, operands)
        if not row.rounds:
            return self.emitted(node, self.alike(node, operands))
        if row.autocast != "follows" or self.met(node, operands) != self.dtype:
            # What stays wide shares what it is made of: its gradients add up before rounding.
            return self.emitted(node, [v and self.b.widened(v) for v in operands])
        return self.rounded_first(node, self.b.widened_apart(operands))

    def rounded_first(self, node: Node, operands: Values) -> tuple[Value, ...]:
        """A node's results, the first of them rounded under the name that it has."""
        first, *others = self.emitted(node, operands, f"{node.out.name}:wide")
        return (self.b.emit("cast", first, dtype=self.dtype, name=node.out.name), *others)

    def emitted(self, node: Node, operands: Values, name: str = "") -> tuple[Value, ...]:
        part = node.row.results[0] if node.row.results else ""
        stem = node.out.name.removesuffix(f"_{part}") if part else node.out.name
        results = self.b.emit(node.op, *operands, name=name or stem, **node.attrs)
        return results if isinstance(results, tuple) else (results,)

    # --- sums of products and what is added to them ---------------------------------------------

    def is_finished_later(self, node: Node) -> bool:
        """Whether a bias is added before anything else is done with sums of products."""
        readers = self.consumers.get(node.out, ())
        alone = len(readers) == 1 and node.out not in self.results
        return alone and readers[0].row.finishes and readers[0].inputs[0] == node.out

    def finishes(self, node: Node, operands: Values) -> bool:
        """Whether a bias is added to sums of products that were not rounded for its sake."""
        made = self.b.producer(operands[0]) if node.row.finishes else None
        return made is not None and made.row.accumulates and made.inputs[0].dtype == self.dtype

    # --- types ----------------------------------------------------------------------------------

    def to(self, v: Value, dtype: str) -> Value:
        return v if v.dtype == dtype else self.b.emit("cast", v, dtype=dtype)

    def narrowed(self, v: Value) -> Value:
        """A value as an operand of products; once for all of them."""
        if v not in self.rounded:
            self.rounded[v] = self.to(v, self.dtype)
        return self.rounded[v]

    def met(self, node: Node, operands: Values) -> str:
        """The type of a result, numbers and vectors of channels not counted."""
        if node.row.channel:
            return operands[0].dtype
        types = [v and self.type_beside(v) for v in operands]
        return node.row.infer(types, node.attrs)[0].dtype

    def type_beside(self, v: Value) -> TensorType:
        """What an operand counts as: a number beside a tensor takes the tensor's type."""
        return TensorType(v.shape, self.dtype if v in self.numbers else v.dtype)

    def is_number(self, node: Node, operands: Values) -> bool:
        """Whether elements are numbers of the program: constants, or one of two of them."""
        if node.row.literal:
            return node.out.dtype == self.wide
        known = [v for v in operands if v is not None and v.type.is_float]
        return not node.row.rounds and bool(known) and all(v in self.numbers for v in known)

    def alike(self, node: Node, operands: Values) -> Values:
        """Operands of one type, for what moves or chooses elements: the one in which they meet."""
        floats = [v for v in operands if v is not None and v.type.is_float]
        dtypes = {v.dtype for v in floats if v not in self.numbers}
        dtype = self.dtype if dtypes == {self.dtype} else self.wide
        return [
            self.to(v, dtype) if v is not None and v.dtype in (self.dtype, self.wide) else v
            for v in operands
        ]
