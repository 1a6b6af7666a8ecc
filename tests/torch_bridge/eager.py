"""A model compiled by bngen beside the same model in eager PyTorch, by the tolerance rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bngen.torch_bridge.backend import backend
from bngen.torch_bridge.region import Region
from bngen.verification.tolerance import allowed

Script = Callable[..., Any]


def step(model: nn.Module, *inputs: Any) -> Any:
    """Forward and backward with a cotangent of its own for each result; all that comes of it."""
    results = model(*inputs)
    floats = [t for t in tensors(results) if t.requires_grad]
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for result in floats:
        weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        total = total + (result * weights.to(result.dtype)).sum()
    if floats:
        total.backward()
    return [results, [x.grad for x in tensors(inputs)]]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def outcome(model: nn.Module, inputs: tuple, script: Script, seed: int) -> dict[str, Any]:
    """What a script gives, and the state of the model after it, by name."""
    torch.manual_seed(seed)
    found: dict[str, Any] = {"result": script(model, *inputs)}
    for name, p in model.named_parameters():
        found[name], found[f"{name}.grad"] = p, p.grad
    found |= dict(model.named_buffers())
    flat = {}
    for name, value in found.items():
        flat |= _flat(name, value)
    flat |= {f"{k} requires_grad": v.requires_grad for k, v in flat.items()
             if isinstance(v, torch.Tensor)}  # fmt: skip
    return {k: copied(v) if isinstance(v, torch.Tensor) else v for k, v in flat.items()}


def copied(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone()


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    else:
        return {name: value}
    found = {f"{name}:": (type(value), len(value))}
    for key, part in parts:
        found |= _flat(f"{name}.{key}", part)
    return found


def converted(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Inputs with each floating-point tensor changed, as leaves of their own."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value.clone()
        new = change(value.detach())
        if new.data_ptr() == value.data_ptr():
            new = torch.empty_like(new).copy_(new) if not _overlaps(new) else new
        return new.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {k: converted(v, change) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(converted(v, change) for v in value)
    return value


def _overlaps(value: torch.Tensor) -> bool:
    return 0 in value.stride()


def nudge(value: torch.Tensor) -> torch.Tensor:
    """About half of the elements moved to a neighbour."""
    toward = torch.where(torch.rand(value.shape) > 0.5, torch.inf, -torch.inf).to(value.dtype)
    return torch.where(torch.rand(value.shape) > 0.5, torch.nextafter(value, toward), value)


def assert_as_eager(
    model: nn.Module,
    inputs: tuple,
    script: Script = step,
    *,
    regions: int | None = None,
    runs: tuple[int, int] = (3, 0),
    **options: Any,
) -> dict[str, Any]:
    """Compare a script's outcome, compiled, with eager's.

    Args:
        model: not changed.
        inputs: of the script, after the model; not changed.
        script: what is done.
        regions: how many calls of regions there must be; at least one by default, any number
            where it is negative.
        runs: how many nudged runs of eager say how far it is from exact, and the seed.
        **options: of `torch.compile`.

    Returns:
        The compiled outcome.
    """
    count, seed = runs
    forward = Region.forward
    calls: list[Region] = []
    hooked = copy.deepcopy(model)
    compiled_inputs = converted(inputs, lambda x: x)

    def counted(region: Region, *tensors: torch.Tensor) -> Any:
        calls.append(region)
        return forward(region, *tensors)

    Region.forward = counted  # type: ignore[method-assign]
    try:
        hooked.compile(backend=backend, **options)
        ours = outcome(hooked, compiled_inputs, script, seed)
    finally:
        Region.forward = forward  # type: ignore[method-assign]
    if regions is None:
        assert calls, "nothing of the model was taken"
    elif regions >= 0:
        assert len(calls) == regions, f"{len(calls)} calls of regions"
    eager = outcome(copy.deepcopy(model), converted(inputs, lambda x: x), script, seed)
    double = copy.deepcopy(model).double()
    sums = summed(double)
    exact = outcome(double, converted(inputs, torch.Tensor.double), script, seed)
    nudged = []
    for _ in range(count):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p in other.parameters():
                p.copy_(nudge(p))
        nudged.append(outcome(other, converted(inputs, nudge), script, seed))
    compare(ours, eager, exact, nudged, sums)
    return ours


def summed(model: nn.Module) -> dict[str, float]:
    """What the gradients of a module's parameters are summed from, by the module's name.

    Returns:
        The sum of magnitudes of the gradients of a channel, the largest, once the model has run.
    """
    found: dict[str, float] = {}

    def note(name: str, g: torch.Tensor) -> None:
        others = [i for i in range(g.ndim) if i != 1]
        found[name] = found.get(name, 0.0) + g.abs().sum(others).max().item()

    def watch(name: str, result: Any) -> None:
        if isinstance(result, torch.Tensor) and result.requires_grad and result.ndim > 1:
            result.register_hook(lambda g: note(name, g))

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda _, __, result, name=name: watch(name, result))
    return found


def compare(
    ours: dict, eager: dict, exact: dict, nudged: list[dict], sums: dict[str, float] | None = None
) -> None:
    """Each tensor by the tolerance rule, with eager's shape, type and strides; the rest equal."""
    assert ours.keys() == eager.keys()
    for name, theirs in eager.items():
        mine = ours[name]
        if not isinstance(theirs, torch.Tensor):
            assert type(mine) is type(theirs) and mine == theirs, f"{name}: {mine} {theirs}"
            continue
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
        assert _layout(mine) == _layout(theirs), f"{name} {mine.stride()} {theirs.stride()}"
        if not theirs.is_floating_point():
            assert torch.equal(mine, theirs), name
            continue
        right = exact[name].double()
        errors = [(run[name].double() - right).abs().max().item() for run in (eager, *nudged)
                  if theirs.numel()]  # fmt: skip
        error = (mine.double() - right).abs().max().item() if theirs.numel() else 0.0
        scale = _scale(name, exact, sums or {}) if theirs.numel() else 0.0
        limit = allowed(max(errors, default=0.0), scale, str(theirs.dtype).removeprefix("torch."))
        assert error <= limit, f"{name}: error {error}, allowed {limit}, scale {scale}"


def _layout(value: torch.Tensor) -> list[int]:
    """Strides, of axes that have more than one element."""
    return [s for s, n in zip(value.stride(), value.shape, strict=True) if n > 1]


def _scale(name: str, exact: dict, sums: dict[str, float]) -> float:
    """The largest element of a tensor, or of what it is summed from.

    A gradient or a mean may be zero but for rounding: of a bias before a batch normalization, of
    what a batch normalization has just centred. Where gradients cancel out, a rounding of the mean
    that a batch normalization has subtracted from each of them adds up.
    """
    module, _, kind = name.removesuffix(".grad").rpartition(".")
    beside, total = [name], 0.0
    if name.endswith(".grad"):
        beside += [n for n in exact if n.endswith(".grad") and n.startswith(f"{module}.")]
        total = sums.get(module, 0.0)
    largest = max(exact[n].abs().max().item() for n in beside if isinstance(exact[n], torch.Tensor))
    if kind == "running_mean":
        largest = max(largest, exact[f"{module}.running_var"].max().item() ** 0.5)
    return max(largest, total)
