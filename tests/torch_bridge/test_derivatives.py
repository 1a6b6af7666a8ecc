"""Nodes of autograd that have first derivatives say so, whatever is asked of them."""

import pytest
import torch
from torch import nn

import bngen
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


def test_a_second_derivative_is_refused_whatever_it_is_asked_for():
    """Autograd goes no way that does not lead to what is named."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    bngen.compile(model)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    inner = x * 2
    weights = list(model.parameters())

    def first(of, y=None):
        y = model(inner).square().sum() if y is None else y
        return torch.autograd.grad(y, of, create_graph=True)[0]

    v = torch.ones(2, 2, 4, 4, requires_grad=True)
    asked = {
        "the input": lambda: torch.autograd.grad(first(x).norm(), x),
        "what the input is computed of": lambda: torch.autograd.grad(first(inner).norm(), x),
        "what is given": lambda: torch.autograd.grad(first(inner).norm(), inner),
        "a weight": lambda: torch.autograd.grad(first(x).norm() + weights[0].sum(), weights[0]),
        "the last weight": lambda: torch.autograd.grad(first(inner).norm(), weights[-2]),
        "weights": lambda: (first(x).norm() + weights[0].sum()).backward(inputs=weights),
        "a cotangent": lambda: torch.autograd.grad(first(x, (model(inner) * v).sum()).norm(), v),
        "a product": lambda: torch.autograd.functional.hvp(lambda t: model(t).sum(), x, x),
    }
    for name, ask in asked.items():
        with pytest.raises(RuntimeError, match="compiles first derivatives"):
            ask()
            pytest.fail(name)
    # One that is not asked for is nobody's business.
    first(x).norm()
    model(x).sum().backward(create_graph=True)


def test_a_batch_of_gradients_is_refused():
    model = bngen.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    y = model(x)
    with pytest.raises(bngen.BngenError, match=r"one gradient at a time.*is_grads_batched=False"):
        torch.autograd.grad(y, x, torch.ones(5, *y.shape), is_grads_batched=True)


def test_a_step_that_is_compiled_as_a_whole_does_not_trace_it():
    def step(x):
        x.grad = None
        Square.apply(x, 1.0).sum().backward()
        assert not torch.compiler.is_compiling()
        return x.grad

    x = torch.tensor([2.0], requires_grad=True)
    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(x), torch.tensor([4.0]))
