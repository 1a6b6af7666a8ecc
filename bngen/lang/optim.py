"""Stochastic gradient descent inside a program, and updates of its inputs."""

from __future__ import annotations

from bngen.lang.tensor import Tensor, check_tensor, same_float_type
from bngen.lang.trace import current_trace, error
from bngen.lang.types import real


def update(input: Tensor, value: Tensor) -> None:
    """Let an argument, parameter or buffer hold ``value`` once the program has ended.

    Until then the program goes on reading the old value.

    Raises:
        ProgramError: ``input`` is computed by the program, has an update already, or has
            another shape or dtype than ``value``.
    """
    trace = current_trace("update")
    check_tensor("update", "input", input)
    check_tensor("update", "value", value)
    if trace.has_update(input.value):
        raise error(f"update: {input.name!r} is updated already", "combine the two updates")
    trace.set_update("update", input.value, value.value)


def sgd(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    lr: float | Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One step of ``torch.optim.SGD`` for one parameter.

    PyTorch starts the momentum buffer with the first gradient. A buffer that starts with zeros
    does the same as long as ``dampening`` is 0; with dampening, PyTorch's first step alone is
    undampened, and here it is dampened like all others: start the buffer with
    ``dampening / momentum`` times the first gradient to match.

    Args:
        param: the parameter.
        grad: its gradient.
        momentum_buffer: as left by the step before, zeros at first; needed with ``momentum``.
        lr: learning rate, a Python number or a tensor without axes.
        momentum: how much of the buffer is kept.
        dampening: what the gradient loses on its way into the buffer.
        weight_decay: factor of an L2 penalty.
        nesterov: look ahead along the momentum.

    Returns:
        New values of ``param`` and ``momentum_buffer`` (``None`` without momentum); hand them to
        `update`.
    """
    same_float_type("sgd", param=param, grad=grad, momentum_buffer=momentum_buffer)
    _check(param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov)
    if weight_decay:
        grad = grad + param * weight_decay
    if not momentum:
        return param - grad * lr, None
    buffer = momentum_buffer * momentum + (grad * (1.0 - dampening) if dampening else grad)
    step = grad + buffer * momentum if nesterov else buffer
    return param - step * lr, buffer


def _check(param, grad, buffer, lr, momentum, dampening, weight_decay, nesterov) -> None:
    for name, x in (("grad", grad), ("momentum_buffer", buffer)):
        if x is not None and x.shape != param.shape:
            raise error(f"sgd: {name} is {x.type} for a parameter {param.type}")
    if isinstance(lr, Tensor):
        check_tensor("sgd", "lr", lr)
        if lr.shape or not lr.type.is_float:
            raise error(f"sgd: lr is {lr.type}", "a learning rate is a float without axes")
    else:
        real("sgd", "lr", lr, 0)
    real("sgd", "momentum", momentum, 0)
    real("sgd", "dampening", dampening)
    real("sgd", "weight_decay", weight_decay, 0)
    if momentum and buffer is None:
        raise error("sgd: momentum needs a momentum_buffer", "declare one with bg.buffer")
    if nesterov and (not momentum or dampening):
        raise error("sgd: nesterov needs a momentum and no dampening")
