"""The symbolic tensor: what a program's function is called with while it is traced.

Every operator and method adds nodes to the trace that the tensor belongs to. Python numbers that
meet a tensor become ``constant`` nodes, and mixed dtypes are resolved as in PyTorch (a tensor
outranks a zero-dimensional one, which outranks a Python number, unless the latter is of a higher
category: bool < integer < float); the casts are written into the graph, so that the operands of
every arithmetic op have one dtype.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from bngen.dtypes import BOOL, DTYPES, FLOAT, INDEX, meet
from bngen.ir.attributes import shown
from bngen.ir.ops import OPS
from bngen.ir.ops.reduce import normalize_axes
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType, Value
from bngen.lang.trace import Trace, current_trace, error
from bngen.lang.types import (
    Scalar,
    dtype_name,
    flag,
    holds,
    integers,
    is_scalar,
    kind_of,
    scalar_dtype,
    tensor_type,
    wrapped,
)

SHAPE_HINT = "shapes align at the last axis; a per-channel vector needs .view(1, -1, 1, 1)"


class Tensor:
    """A tensor of the program being traced; subscripted, the type of a program's argument.

    ``bg.Tensor[8, 64, 56, 56]`` is a float32 type of that shape; another dtype comes last, as in
    ``bg.Tensor[8, bg.int64]``; ``bg.Tensor[()]`` and ``bg.Tensor[bg.int64]`` have no axes.
    ``bg.Tensor(shape, dtype)`` gives the same types where shape and dtype are computed.

    Attributes:
        trace: the trace it belongs to.
        value: its name and type in the graph.
    """

    __slots__ = ("trace", "value")
    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us

    trace: Trace
    value: Value

    def __new__(cls, shape: int | Sequence[int], dtype: Any = FLOAT) -> TensorType:  # noqa: D102
        return tensor_type(shape, dtype)

    def __class_getitem__(cls, items: Any) -> TensorType:
        items = items if isinstance(items, tuple) else (items,)
        if items and not isinstance(items[-1], numbers.Integral):
            return tensor_type(items[:-1], items[-1])
        return tensor_type(items)

    # --- what it is -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name

    @property
    def type(self) -> TensorType:
        """Shape and dtype together."""
        return self.value.type

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of its axes: known while tracing, so Python may compute with them."""
        return self.value.type.shape

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.value.type.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """The shape, or the extent of one axis."""
        return self.shape if dim is None else self.shape[axis_of("size", self, dim)]

    def numel(self) -> int:
        """Number of elements."""
        return self.type.size

    def __repr__(self) -> str:
        return f"<bngen.Tensor {self.name}: {self.type}>"

    def __len__(self) -> int:
        if not self.shape:
            raise error(f"len: {self.name} has no axes")
        return self.shape[0]

    def __bool__(self) -> NoReturn:
        raise error(
            f"{self.name} has no value while the program is traced, so Python cannot branch on it",
            "select with bg.where(condition, a, b), or branch on shapes and Python values",
        )

    def __float__(self) -> NoReturn:
        raise error(
            f"{self.name} has no value while the program is traced, so it is no Python number",
            "keep computing with tensors",
        )

    __int__ = __index__ = __complex__ = __round__ = __float__

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise error(
            f"{self.name} has no value while the program is traced, so it is no array",
            "compute with bg's functions in place of NumPy's",
        )

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise error(
            f"np.{func.__name__}: NumPy cannot compute with {self.name}, which has no value yet",
            "use bg's functions",
        )

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __contains__(self, item: Any) -> NoReturn:
        self.__bool__()

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise error(
            f"nothing changes a tensor, so no part of {self.name} can be assigned to",
            "make a new one with bg.where or bg.cat",
        )

    def __delitem__(self, index: Any) -> NoReturn:
        self.__setitem__(index, None)

    def __copy__(self) -> Tensor:
        return self

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self

    def __format__(self, spec: str) -> str:
        return repr(self)

    # --- operators ------------------------------------------------------------------------

    def __add__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("add", self, other)

    def __radd__(self, other: Scalar) -> Tensor:
        return arithmetic("add", other, self)

    def __sub__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("sub", self, other)

    def __rsub__(self, other: Scalar) -> Tensor:
        return arithmetic("sub", other, self)

    def __mul__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("mul", self, other)

    def __rmul__(self, other: Scalar) -> Tensor:
        return arithmetic("mul", other, self)

    def __truediv__(self, other: Tensor | Scalar) -> Tensor:
        return quotient(self, other)

    def __rtruediv__(self, other: Scalar) -> Tensor:
        return quotient(other, self)

    def __pow__(self, other: Tensor | Scalar) -> Tensor:
        return power(self, other)

    def __rpow__(self, other: Scalar) -> Tensor:
        return power(other, self)

    def __neg__(self) -> Tensor:
        return arithmetic("neg", self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return arithmetic("abs", self)

    def __matmul__(self, other: Tensor) -> Tensor:
        same_float_type("matmul", a=self, b=other)
        return emit("matmul", self, other, hint="matmul takes [M,K] and [K,N]").to(self.dtype)

    def __gt__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("greater", self, other)

    def __ge__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("greater_equal", self, other)

    def __lt__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("less", self, other)

    def __le__(self, other: Tensor | Scalar) -> Tensor:
        return arithmetic("less_equal", self, other)

    def __eq__(self, other: Tensor | Scalar) -> Tensor:  # type: ignore[override]
        return arithmetic("equal", self, other)

    def __ne__(self, other: Tensor | Scalar) -> Tensor:  # type: ignore[override]
        return arithmetic("not_equal", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Tensor | bool) -> Tensor:
        return bitwise("mul", self, other, label="&")

    def __or__(self, other: Tensor | bool) -> Tensor:
        return bitwise("maximum", self, other, label="|")

    def __xor__(self, other: Tensor | bool) -> Tensor:
        return bitwise("not_equal", self, other, label="^")

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Tensor:
        return bitwise("equal", self, False, label="~")

    def __getitem__(self, index: Any) -> Tensor:
        return _subscript(self, index if isinstance(index, tuple) else (index,))

    # --- methods, named as torch.Tensor's -------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of the language as a method; see `bngen.lang.methods`."""
        methods = {} if name in Tensor.__slots__ else self.trace.methods
        if name in methods:
            return functools.partial(methods[name], self)
        raise AttributeError(f"'Tensor' object has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self.trace.methods]

    def to(self, dtype: Any) -> Tensor:
        """The same numbers in another dtype."""
        dtype = dtype_name("to", dtype)
        return self if dtype == self.dtype else emit("cast", self, label="to", dtype=dtype)

    def float(self) -> Tensor:
        """The same numbers as float32."""
        return self.to(FLOAT)

    def bfloat16(self) -> Tensor:
        """The same numbers as bfloat16."""
        return self.to("bfloat16")

    def detach(self) -> Tensor:
        """The same tensor, through which no gradient flows."""
        return emit("stop_gradient", self)

    def exp(self) -> Tensor:
        """Power of e to each element."""
        return floating("exp", self)

    def log(self) -> Tensor:
        """Natural logarithm of each element."""
        return floating("log", self)

    def sqrt(self) -> Tensor:
        """Square root of each element."""
        return floating("sqrt", self)

    def rsqrt(self) -> Tensor:
        """One over the square root of each element."""
        return floating("rsqrt", self)

    def tanh(self) -> Tensor:
        """Hyperbolic tangent of each element."""
        return floating("tanh", self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x)) of each element."""
        return floating("sigmoid", self)

    def relu(self) -> Tensor:
        """max(x, 0) of each element; NaN stays NaN."""
        return emit("relu", self)

    def abs(self) -> Tensor:
        """Absolute value of each element."""
        return arithmetic("abs", self)

    def pow(self, exponent: Tensor | Scalar) -> Tensor:
        """Each element to the power of ``exponent``."""
        return power(self, exponent)

    def sum(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        """Sum over axes (all of them by default); integers and bool add up as int64."""
        x = self if self.type.is_float else self.to(INDEX)
        return reduction("sum", x, dim, keepdim)

    def mean(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        """Arithmetic mean over axes, all of them by default."""
        if not self.type.is_float:
            raise error(f"mean: {self.name} is {self.type}", "convert it first: x.float().mean()")
        return reduction("mean", self, dim, keepdim)

    def amax(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        """Largest element over axes, all of them by default."""
        return largest("amax", self, dim, keepdim)

    def max(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        """The same as `amax`: values only, no indices."""
        return largest("max", self, dim, keepdim)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements in order, in another shape; one extent may be -1."""
        extents = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        return _reshape(self, tuple(extents))

    def view(self, *shape: int | Sequence[int]) -> Tensor:
        """The same as `reshape`."""
        return self.reshape(*shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes from ``start_dim`` to ``end_dim`` into one."""
        if not self.shape:
            return self.reshape(1)
        first, last = axis_of("flatten", self, start_dim), axis_of("flatten", self, end_dim)
        if first > last:
            raise error(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        return self.reshape(*self.shape[:first], -1, *self.shape[last + 1 :])


# --- tensors and operands ---------------------------------------------------------------------


def wrap(trace: Trace, value: Value) -> Tensor:
    """A `Tensor` for a value of a trace."""
    tensor = object.__new__(Tensor)
    tensor.trace, tensor.value = trace, value
    return tensor


def check_tensor(label: str, operand: str, x: Any) -> Tensor:
    """``x`` itself; raises when it is no tensor of the running trace."""
    trace = current_trace(label)
    if not isinstance(x, Tensor):
        hint = "arrays enter a program as arguments, bg.parameter or bg.buffer"
        raise error(f"{label}: {operand} must be a tensor, got {kind_of(x)}", hint)
    if x.trace is not trace:
        raise error(
            f"{label}: {operand} {x.name!r} belongs to a trace of {x.trace.name!r}, "
            f"not to this one of {trace.name!r}",
            "pass it as an argument, or return it from the program that makes it",
        )
    return x


def same_float_type(label: str, optional: Sequence[str] = (), **operands: Tensor | None) -> None:
    """Raise unless all operands are tensors of one floating-point dtype.

    Args:
        label: what the user called.
        optional: names of the operands that may be ``None``.
        **operands: by name.
    """
    first = None
    for name, x in operands.items():
        if x is None and name in optional:
            continue
        check_tensor(label, name, x)
        first = first or (name, x)
        if not x.type.is_float or x.dtype != first[1].dtype:
            found = f"{name} is {x.type}"
            if x is not first[1]:
                found = f"{first[0]} is {first[1].type} but {found}"
            raise error(f"{label}: {found}", "convert to one floating-point dtype with .to(...)")


# --- adding nodes -----------------------------------------------------------------------------


def emit_all(
    op: str,
    *operands: Tensor | None,
    label: str | None = None,
    hint: str | None = None,
    name: str | None = None,
    **attrs: Any,
) -> tuple[Tensor, ...]:
    """Apply an op of the table; all its results.

    Args:
        op: name in `bngen.ir.ops.OPS`.
        *operands: its operands in order, ``None`` for a missing one.
        label: what the user called, when that is not ``op``.
        hint: what to try when the operands do not fit.
        name: what the results are called; numbered by the op otherwise.
        **attrs: the op's attributes.

    Raises:
        ProgramError: operands do not fit, or belong to another trace.
    """
    label = label or op
    trace = current_trace(label)
    for i, x in enumerate(operands):
        if x is not None:
            check_tensor(label, f"operand {i + 1}", x)
    values = [None if x is None else x.value for x in operands]
    try:
        return tuple(wrap(trace, v) for v in trace.add(op, values, attrs, name=name))
    except ShapeError as e:
        raise error(f"{label}: {e}", hint) from None


def emit(op: str, *operands: Tensor | None, **kwargs: Any) -> Tensor:
    """Apply an op of the table; its first result. Arguments as for `emit_all`."""
    return emit_all(op, *operands, **kwargs)[0]


def constant(value: Scalar, dtype: str) -> Tensor:
    """A zero-dimensional constant."""
    row = DTYPES[dtype]
    try:
        value = row.scalar(value)
    except (OverflowError, ValueError):  # An integer too large for a float, NaN for an integer.
        raise error(f"a number cannot be {dtype}", "use smaller ones") from None
    if row.kind == "int" and not holds(INDEX, value):
        raise error(f"a number cannot be {INDEX}", "use smaller ones")
    if row.is_float and abs(value) >= row.overflow:
        value = math.copysign(math.inf, value)  # As in PyTorch, and as rounding gives it.
    return emit("constant", value=value, dtype=dtype)


def computed(x: Tensor | None) -> Tensor | None:
    """A tensor in the dtype it is computed in, which for one that is only stored is another."""
    return x if x is None else x.to(x.type.element.computed)


def rounded_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of several ops that rounds its results, not each op's.

    That makes a difference where the first tensor is of a dtype that is only stored; the others are
    then of that dtype, or of the one it is computed in.
    """

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        first = next((x for x in given if x.type.is_float), None)
        if first is None or not first.type.element.stored_only:
            return fn(*args, **kwargs)
        if any(x.type.is_float and x.dtype not in _fitting(first) for x in given):
            return fn(*args, **kwargs)
        args = tuple(computed(x) if isinstance(x, Tensor) else x for x in args)
        kwargs = {k: computed(x) if isinstance(x, Tensor) else x for k, x in kwargs.items()}
        results = fn(*args, **kwargs)
        if isinstance(results, tuple):
            return tuple(_rounded(x, first.dtype) for x in results)
        return _rounded(results, first.dtype)

    return call


def _fitting(x: Tensor) -> set[str]:
    return {x.dtype, x.type.element.computed}


def _rounded(x: Tensor | None, dtype: str) -> Tensor | None:
    return x if x is None or not x.type.is_float else x.to(dtype)


def _number(label: str, x: Scalar, dtype: str, wraps: bool) -> Tensor:
    """A number that meets tensors of ``dtype``; refused where it is none of that type's.

    Where results wrap, an integer counts modulo the range, as in PyTorch. PyTorch wraps it in
    comparisons, too, where nothing of what was written is left: ``uint8 > -1`` would
    be false everywhere.
    """
    if DTYPES[dtype].is_float:
        try:
            return constant(float(x), dtype)
        except OverflowError:
            raise error(f"{label}: {shown(x)} exceeds every floating-point number") from None
    if dtype == BOOL or holds(dtype, x):
        return constant(x, dtype)
    if wraps and holds(INDEX, x):
        return constant(wrapped(int(x), dtype), dtype)
    hint = "convert the tensor to a wider type first, such as .to(bg.int64) or .float()"
    raise error(f"{label}: {shown(x)} is no {dtype}, which the tensor beside it is", hint)


def coerce(
    label: str,
    operands: Sequence[Any],
    *,
    wraps: bool = False,
    floats: bool = False,
    rounds: bool = False,
) -> list[Tensor]:
    """All operands as tensors of the one dtype in which they meet.

    Args:
        label: what the user called.
        operands: tensors and numbers.
        wraps: take numbers modulo the range of an integer dtype.
        floats: take integers as floating-point numbers.
        rounds: what is computed of them is rounded, so that numbers need not be before.
    """
    for x in operands:
        if isinstance(x, Tensor):
            check_tensor(label, "operand", x)
        elif not is_scalar(x):
            raise error(
                f"{label}: takes tensors and numbers, got {kind_of(x)}",
                "arrays enter a program as arguments, bg.parameter or bg.buffer",
            )
    dtype = meet(
        (
            [x.dtype for x in operands if isinstance(x, Tensor) and x.shape],
            [x.dtype for x in operands if isinstance(x, Tensor) and not x.shape],
            [scalar_dtype(x) for x in operands if not isinstance(x, Tensor)],
        )
    )
    if floats and not DTYPES[dtype].is_float:
        dtype = FLOAT
    number = DTYPES[dtype].computed if rounds else dtype
    return [
        x.to(dtype) if isinstance(x, Tensor) else _number(label, x, number, wraps) for x in operands
    ]


def arithmetic(op: str, *operands: Tensor | Scalar, label: str | None = None) -> Tensor:
    """A pointwise op over operands of mixed kinds, dtypes and shapes that broadcast."""
    label, row = label or op, OPS[op]
    xs = coerce(label, operands, wraps=row.wraps, rounds=row.rounds)
    if row.takes == "number" and xs[0].dtype == BOOL:
        raise error(f"{label}: not defined for bool", "convert it with .to(bg.float32)")
    return emit(op, *xs, label=label, hint=SHAPE_HINT)


def quotient(dividend: Tensor | Scalar, divisor: Tensor | Scalar, label: str = "div") -> Tensor:
    """``dividend / divisor``; integers divide as float32."""
    xs = coerce(label, (dividend, divisor), floats=True, rounds=True)
    return emit("div", *xs, label=label, hint=SHAPE_HINT)


def floating(op: str, x: Tensor, **attrs: Any) -> Tensor:
    """A pointwise op of one operand in floating point; integers are taken as float32."""
    check_tensor(op, "x", x)
    return emit(op, x if x.type.is_float else x.float(), **attrs)


def logical(op: str, *operands: Tensor, label: str) -> Tensor:
    """A pointwise op over whether elements are other than zero."""
    for i, x in enumerate(operands):
        check_tensor(label, f"operand {i + 1}", x)
    return arithmetic(op, *(x if x.dtype == BOOL else x != 0 for x in operands), label=label)


def bitwise(op: str, *operands: Tensor | bool, label: str) -> Tensor:
    """A pointwise op over bool tensors and Python's bools."""
    for x in operands:
        kind = x.dtype if isinstance(x, Tensor) else scalar_dtype(x) if is_scalar(x) else None
        if kind != BOOL:
            found = x.type if isinstance(x, Tensor) else kind_of(x)
            hint = "make bool of it first: x != 0"
            raise error(f"{label}: takes bool tensors, got {found}", hint)
    return arithmetic(op, *operands, label=label)


def power(x: Tensor | Scalar, exponent: Tensor | Scalar) -> Tensor:
    """``x ** exponent``; the exponents that have cheaper and exacter ops use them."""
    if isinstance(x, Tensor) and is_scalar(exponent):
        check_tensor("pow", "input", x)
        base = x.to(meet(([x.dtype], [], [scalar_dtype(exponent)])))
        if exponent == 2 and base.dtype != BOOL:
            return arithmetic("mul", base, base, label="pow")
        if not base.type.is_float:
            return _integer_power(base, int(exponent))
        if exponent in (1, 0.5, -0.5, -1):
            return {
                1: lambda: base,
                0.5: base.sqrt,
                -0.5: base.rsqrt,
                -1: lambda: quotient(1.0, base, label="pow"),
            }[exponent]()
    base, exponent = coerce("pow", (x, exponent), rounds=True)
    if not base.type.is_float:
        hint = "convert one of them to floating point first, .float()"
        raise error(f"pow: {base.dtype} to a power that is known only later", hint)
    return emit("pow", base, exponent, hint=SHAPE_HINT)


def _integer_power(x: Tensor, exponent: int) -> Tensor:
    """By squaring; products wrap."""
    if x.dtype == BOOL:
        raise error("pow: not defined for bool", "convert it with .to(bg.float32)")
    if exponent < 0 or not holds(x.dtype, exponent):
        hint = "convert it to floating point first, .float()"
        raise error(f"pow: {x.name} is {x.type}, which has no power {exponent}", hint)
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else arithmetic("mul", result, square, label="pow")
        exponent >>= 1
        if exponent:
            square = arithmetic("mul", square, square, label="pow")
    if result is None:
        return emit("broadcast_to", constant(1, x.dtype), label="pow", shape=x.shape)
    return result


# --- axes and shapes --------------------------------------------------------------------------


def axis_of(label: str, x: Tensor, dim: int) -> int:
    """A non-negative axis; raises `ProgramError` when ``x`` has no such one."""
    if not isinstance(dim, numbers.Integral) or not -x.ndim <= dim < x.ndim:
        raise error(f"{label}: dim {shown(dim)} is out of range for {x.type}")
    return int(dim) % x.ndim


def axes_of(label: str, x: Tensor, dims: tuple[Any, ...]) -> tuple[int, ...]:
    """Non-negative axes, given one by one or in one sequence."""
    return tuple(axis_of(label, x, d) for d in integers(label, dims))


def reduction(
    op: str,
    x: Tensor,
    dim: int | Sequence[int] | None,
    keepdim: bool,
    label: str | None = None,
) -> Tensor:
    """Fold axes of ``x``: all of them when ``dim`` is ``None`` or empty."""
    label = label or op
    check_tensor(label, "x", x)
    if isinstance(dim, numbers.Integral):
        dims: tuple[int, ...] = (int(dim),)
    elif dim is None or (isinstance(dim, Sequence) and len(dim) == 0):
        dims = tuple(range(x.ndim))
    elif isinstance(dim, Sequence) and all(isinstance(d, numbers.Integral) for d in dim):
        dims = tuple(int(d) for d in dim)
    else:
        raise error(f"{label}: dim must be an int or a tuple of ints, got {shown(dim)}")
    try:
        axes = normalize_axes(dims, x.ndim)
    except ShapeError as e:
        raise error(f"{label}: {e} ({x.type})") from None
    return emit(op, x, label=label, axes=axes, keepdims=flag(label, "keepdim", keepdim))


def largest(label: str, x: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> Tensor:
    """The largest element over axes of ``x``, of any element type."""
    if x.dtype == BOOL:
        return reduction("amax", x.to("uint8"), dim, keepdim, label).to(BOOL)
    return reduction("amax", x, dim, keepdim, label)


def _reshape(x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    if not all(isinstance(e, numbers.Integral) and e >= -1 and e != 0 for e in shape):
        raise error(f"reshape: {shown([*shape])} is no shape", "use positive integers and one -1")
    extents = [int(e) for e in shape]
    if extents.count(-1) > 1:
        raise error(f"reshape: {extents} has more than one -1")
    if -1 in extents:
        rest = math.prod(e for e in extents if e != -1)
        if x.type.size % rest:
            raise error(
                f"reshape: {x.type} has {x.type.size} elements, no multiple of {shown(rest)}"
            )
        extents[extents.index(-1)] = x.type.size // rest
    if tuple(extents) == x.shape:
        return x
    return emit("reshape", x, shape=tuple(extents))


def _subscript(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """``x[1, :, 3:5, ::2]``: integers and slices, one axis after the other; None for a new axis."""
    at = next((k for k, i in enumerate(index) if i is Ellipsis), None)
    if at is not None:
        given = sum(i is not None for i in index) - 1
        index = (*index[:at], *(slice(None),) * (x.ndim - given), *index[at + 1 :])
    items = [i for i in index if i is not None]
    if len(items) > x.ndim:
        raise error(f"subscript: {len(items)} indices for {x.type}")
    for axis, item in enumerate(items):
        x = _subscript_axis(x, axis, item)
    # An integer takes its axis away, None puts one of extent 1 in.
    shape, extents = [], iter(x.shape)
    for item in index:
        extent = 1 if item is None else next(extents)
        if item is None or isinstance(item, slice):
            shape.append(extent)
    return _reshape(x, (*shape, *extents))


def _subscript_axis(x: Tensor, axis: int, item: Any) -> Tensor:
    extent = x.shape[axis]
    if isinstance(item, slice) and (item.step is None or item.step > 0):
        start, stop, step = item.indices(extent)
    elif isinstance(item, numbers.Integral) and -extent <= item < extent:
        start, stop, step = int(item) % extent, int(item) % extent + 1, 1
    else:
        hint = "use integers inside the axis and slices of steps of 1 or more"
        raise error(f"subscript: {shown(item)} does not index axis {axis} of {x.type}", hint)
    if step > 1 and len(range(start, stop, step)) > 1:
        pieces, fill = (len(range(start, stop, step)), start, step), x.type.element.scalar(0)
        return emit("gather", x, label="subscript", axis=axis, pieces=pieces, fill=fill)
    stop = min(stop, start + 1) if step > 1 else stop
    if (start, stop) == (0, extent):
        return x
    return emit("slice", x, label="subscript", axis=axis, start=start, stop=stop)
