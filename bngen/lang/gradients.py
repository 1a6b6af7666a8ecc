"""Programs made from programs: gradients, and whole training steps.

In: a `Program` (or its graph) that returns one scalar. Out: another `Program`, which can be built,
printed, and called inside the trace of a third like any other. The rules of differentiation are
`passes.autodiff`'s, the optimizer is written in the language itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bngen.dtypes import INDEX
from bngen.ir.build import prune
from bngen.ir.node import Graph
from bngen.ir.types import TensorType, Value
from bngen.labels import VALUE
from bngen.lang.clipping import clip_grad_norm, clip_grad_value
from bngen.lang.optim import Optimizer, latest, update
from bngen.lang.program import Program, graph_of
from bngen.lang.state import buffer, parameters, scope
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.passes.autodiff import differentiate, targets_of
from bngen.passes.grad_rules import NO_GRADIENT

STEPS = "optimizer.steps"
"""Where `training_step` counts the steps taken, for optimizers that depend on it."""


def grad(program: Any, wrt: Sequence[str] | None = None) -> Program:
    """The gradients of a program's scalar result.

    Args:
        program: a `Program` or its graph; it returns a single scalar.
        wrt: names of floating-point inputs, perhaps none; every such argument and parameter when
            None.

    Returns:
        A program of the same arguments that returns a dict of gradients by name.

    Raises:
        ProgramError: for a name that is no floating-point input, or a result that is no scalar.
    """
    joint = _joint(program, wrt, "grad")
    names = tuple(v.name for v in targets_of(joint, wrt))
    gradients = replace(joint, outputs=joint.outputs[1:], output_names=names, tuple_output=False)
    return Program.from_graph(prune(gradients))


def value_and_grad(program: Any, wrt: Sequence[str] | None = None) -> Program:
    """A program's scalar result and its gradients.

    Args:
        program: a `Program` or its graph; it returns a single scalar.
        wrt: names of floating-point inputs, perhaps none; every such argument and parameter when
            None.

    Returns:
        A program of the same arguments that returns ``(value, {name: gradient})``.

    Raises:
        ProgramError: for a name that is no floating-point input, or a result that is no scalar.
    """
    return Program.from_graph(_joint(program, wrt, "value_and_grad"))


def training_step(
    program: Any,
    optimizer: Optimizer,
    *,
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> Program:
    """One step of training: forward, backward, and the update of every parameter in place.

    Parameters that the loss does not depend on stay as they are. What the optimizer keeps of a
    parameter lies in buffers of the module that have ``torch.optim``'s names, as
    ``momentum_buffer.<parameter>`` and ``exp_avg.<parameter>``, and start with zeros.

    Args:
        program: a `Program` or its graph; it returns the loss, a single scalar.
        optimizer: how parameters move; where its ``lr`` is None, the step takes the learning rate
            as its last argument, ``lr``, a float32 without axes.
        max_norm: what the norm of all gradients together is kept below, see `clip_grad_norm`.
        clip_value: what the elements of gradients are kept between, see `clip_grad_value`.

    Returns:
        A program of the same arguments that returns the loss.

    Raises:
        ProgramError: for a program without parameters, or a result that is no scalar.
    """
    graph = graph_of(program, "training_step")
    if not isinstance(optimizer, Optimizer):
        what = f"training_step: optimizer is {type(optimizer).__name__}"
        raise error(what, "pass bg.SGD(lr=0.1)")
    names = trained_parameters(graph)
    if not names:
        what = f"training_step: the result of {graph.name} depends on no parameter"
        raise error(what, "declare what is trained with bg.parameter")
    joint = value_and_grad(program, names)
    arguments = dict(joint.arguments)
    if optimizer.lr is None:
        if "lr" in arguments:
            what = f"training_step: {graph.name} has an argument 'lr' of its own"
            raise error(what, f"rename it, or give bg.{type(optimizer).__name__} a number")
        arguments["lr"] = TensorType(())

    def step(**inputs: Any) -> Any:
        lr = inputs.pop("lr") if optimizer.lr is None else optimizer.lr
        loss, gradients = joint(**inputs)
        if clip_value is not None:
            gradients = clip_grad_value(gradients, clip_value)
        if max_norm is not None:
            gradients, _ = clip_grad_norm(gradients, max_norm)
        _move(optimizer, gradients, lr)
        return loss

    # Traced here, so that mistakes show where the step is made; called like any other graph.
    return Program.from_graph(Program(step, f"{graph.name}_step", arguments).graph)


def trained_parameters(graph: Graph) -> list[str]:
    """Names of the parameters that gradients of the outputs reach, in order of declaration."""
    reached: set[Value] = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.op not in NO_GRADIENT and not reached.isdisjoint(node.outputs):
            reached.update(node.operands)
    return [i.name for i in graph.inputs if i.kind == "parameter" and i.value in reached]


def _move(optimizer: Optimizer, gradients: dict[str, Any], lr: Any) -> None:
    """Record the update of each parameter, and of what is kept of it."""
    params = parameters()
    taken = buffer(STEPS, (), INDEX) if optimizer.counts_steps else None
    for name, gradient in gradients.items():
        param = latest(params[name])
        kept = {what: _kept(what, name, param) for what in optimizer.keeps}
        new, new_kept = optimizer.step(param, gradient, kept, lr, taken)
        update(params[name], new)
        for what, value in new_kept.items():
            update(kept[what], value)
    if taken is not None:
        update(taken, taken + 1)


def _kept(what: str, name: str, param: Tensor) -> Tensor:
    with scope(what):
        return buffer(name, param.shape, param.dtype)


def _joint(program: Any, wrt: Sequence[str] | None, label: str) -> Graph:
    """The program's value, then the gradients, labelled as such."""
    joint = differentiate(graph_of(program, label), wrt, cotangents="ones")
    return replace(joint, output_names=(VALUE, *joint.output_names[1:]), tuple_output=False)
