"""The symbolic tensor: what a program's function is called with while it is traced.

Every operator and method adds nodes to the trace that the tensor belongs to, by the functions of
`bngen.lang.arithmetic`, `bngen.lang.axes` and `bngen.lang.subscripts`; the rest of
`torch.Tensor`'s methods are functions of the language, see `bngen.lang.methods`.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from bngen.dtypes import FLOAT, INDEX
from bngen.ir.types import TensorType
from bngen.lang.arithmetic import arithmetic, bitwise, floating, power, quotient
from bngen.lang.axes import axis_of, largest, reduction, reshaped
from bngen.lang.emission import cast, emit
from bngen.lang.operands import same_float_type
from bngen.lang.subscripts import subscript
from bngen.lang.trace import error
from bngen.lang.traced import Traced
from bngen.lang.types import Scalar, dtype_name, tensor_type


class Tensor(Traced):
    """A tensor of the program being traced; subscripted, the type of a program's argument.

    ``bg.Tensor[8, 64, 56, 56]`` is a float32 type of that shape; another dtype comes last, as in
    ``bg.Tensor[8, bg.int64]``; ``bg.Tensor[()]`` and ``bg.Tensor[bg.int64]`` have no axes.
    ``bg.Tensor(shape, dtype)`` gives the same types where shape and dtype are computed.

    Attributes:
        trace: the trace it belongs to.
        value: its name and type in the graph.
    """

    __slots__ = ()
    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us

    def __new__(cls, shape: int | Sequence[int], dtype: Any = FLOAT) -> TensorType:  # noqa: D102
        return tensor_type(shape, dtype)

    def __class_getitem__(cls, items: Any) -> TensorType:
        items = items if isinstance(items, tuple) else (items,)
        if items and not isinstance(items[-1], numbers.Integral):
            return tensor_type(items[:-1], items[-1])
        return tensor_type(items)

    # --- what Python asks of numbers and arrays -------------------------------------------

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

    def __contains__(self, item: Any) -> NoReturn:
        self.__bool__()

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise error(
            f"nothing changes a tensor, so no part of {self.name} can be assigned to",
            "make a new one with bg.where or bg.cat",
        )

    def __delitem__(self, index: Any) -> NoReturn:
        self.__setitem__(index, None)

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
        return subscript(self, index if isinstance(index, tuple) else (index,))

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    # --- methods, named as torch.Tensor's -------------------------------------------------

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """The shape, or the extent of one axis."""
        return self.shape if dim is None else self.shape[axis_of("size", self, dim)]

    def numel(self) -> int:
        """Number of elements."""
        return self.type.size

    def to(self, dtype: Any) -> Tensor:
        """The same numbers in another dtype."""
        return cast(self, dtype_name("to", dtype))

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
        return reshaped(self, tuple(extents))

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
