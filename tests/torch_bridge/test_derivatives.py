"""Nodes of autograd that have first derivatives say so, whatever is asked of them."""

import pytest
import torch

from bngen.torch_bridge.derivatives import first_derivatives


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return x * x * scale

    @staticmethod
    @first_derivatives
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * x * dy, None


def test_the_gradient_is_that_of_the_node():
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    Square.apply(x, 1.0).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([2.0, -6.0]))
    assert not x.grad.requires_grad


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused_whatever_the_cotangent(power):
    x = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(Square.apply(x, 1.0).pow(power).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient.detach(), torch.full((3,), 2.0 * power))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient.square().sum() + x.sum()).backward()


def test_a_step_that_is_compiled_as_a_whole_does_not_trace_it():
    def step(x):
        x.grad = None
        Square.apply(x, 1.0).sum().backward()
        assert not torch.compiler.is_compiling()
        return x.grad

    x = torch.tensor([2.0], requires_grad=True)
    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(x), torch.tensor([4.0]))
