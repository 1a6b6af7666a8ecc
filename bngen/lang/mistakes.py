"""What users are told of mistakes that Python finds: where, and which name or function was meant.

In: an exception that the user's function raised while it was traced, or a thing that is no program.
Out: a `ProgramError` at the user's line, or None where the fault is bngen's own.
"""

from __future__ import annotations

import builtins
import difflib
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from bngen.dtypes import DTYPES
from bngen.errors import ProgramError, SourceLoc
from bngen.lang.operands import rounded_once
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(
    sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)

_NO_VALUE = "a tensor has no value while the program is traced; compute with bg's functions"
_NO_DEVICE = "leave it out: programs run on the CPU, in layouts that the compiler chooses"
_NO_TAPE = "gradients come from bg.build(..., grad=True), bg.grad or bg.value_and_grad"
_INSTEAD = {
    **dict.fromkeys(("numpy", "item", "tolist", "data"), _NO_VALUE),
    **dict.fromkeys(("cpu", "cuda", "device", "contiguous", "is_contiguous"), _NO_DEVICE),
    **dict.fromkeys(("backward", "grad", "requires_grad", "requires_grad_"), _NO_TAPE),
    **{n: f"write .to(bg.{t})" for n, t in (("double", "float64"), ("int", "int32"),
                                            ("long", "int64"), ("bool", "bool_"))},
    "half": f"{', '.join(t for t, row in DTYPES.items() if row.is_float)} are what there is",
    **dict.fromkeys(("T", "mT"), "write .transpose(-2, -1)"),
    "equal": "write == for each element",
    "clone": "leave it out: nothing changes a tensor",
}  # fmt: skip
"""What to do in place of a method or attribute of ``torch.Tensor`` that tensors do not have."""


_ASKED = {Tensor.__getattr__.__code__, rounded_once(len).__code__}
"""Of functions that raise what is their callers' mistake: an attribute that there is not, arguments
that do not fit."""


def blame(name: str, cause: Exception) -> ProgramError | None:
    """What to say of an exception that left a program's function.

    Args:
        name: the program's.
        cause: what its function raised.

    Returns:
        None where bngen itself raised it, and the user cannot mend it.
    """
    frames = list(traceback.walk_tb(cause.__traceback__))
    if frames[-1][0].f_code in _ASKED:
        frames.pop()
    overrun = isinstance(cause, RecursionError | MemoryError)  # in whoever was called last
    if _is_ours(frames[-1][0]) and not overrun:
        return None
    foreign = [f for f in frames if not _is_ours(f[0])]
    users = [f for f in foreign if not f[0].f_code.co_filename.startswith(_LIBRARIES)]
    frame, line = (users or foreign or frames)[-1]
    what = ": ".join(part for part in (name, type(cause).__name__, str(cause)) if part)
    where = SourceLoc(frame.f_code.co_filename, line)
    return ProgramError(what, loc=where, hint=_meant(cause))


def _is_ours(frame: FrameType) -> bool:
    """By file, or by module: what a dataclass generates is in no file."""
    in_package = frame.f_code.co_filename.startswith(_PACKAGE)
    return in_package or frame.f_globals.get("__name__", "").startswith("bngen.")


def _meant(cause: Exception) -> str | None:
    """The name that was meant, or what to do in its place."""
    wanted = getattr(cause, "name", None)
    if not isinstance(wanted, str):
        return None
    if isinstance(cause, AttributeError):
        known = [n for n in dir(cause.obj) if not n.startswith("_")]
        if isinstance(cause.obj, Tensor) and wanted in _INSTEAD:
            return _INSTEAD[wanted]
        if isinstance(cause.obj, Tensor) and wanted.endswith("_"):
            return f"nothing changes a tensor: write x = x.{wanted[:-1]}(...)"
    elif isinstance(cause, NameError):
        frame = traceback.walk_tb(cause.__traceback__)
        seen = [(f.f_locals, f.f_globals) for f, _ in frame][-1]
        known = [*seen[0], *seen[1], *dir(builtins)]
    else:
        return None
    near = difflib.get_close_matches(wanted, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else None


def not_a_program(label: str, thing: Any) -> ProgramError:
    """What to say of a thing that was handed over as a program; ``label`` is to whom."""
    hint = "mark the function with @bg.program"
    if inspect.isclass(thing):
        return error(f"{label}: takes a program, got the class {thing.__name__}", hint)
    if inspect.isroutine(thing) or hasattr(thing, "__code__"):
        loc = name_and_loc(thing)[1]
        what = f"{label}: {getattr(thing, '__name__', 'this')} is a function, not a program"
        typed = bool(getattr(thing, "__annotations__", None))
        how = "write @bg.program above it" if typed else "write bg.trace(it, *types)"
        return ProgramError(what, loc=loc, hint=how) if loc else error(what, how)
    if isinstance(thing, str):
        hint = f"a built-in network is bg.models.make({thing!r})"
    elif type(thing).__module__.startswith("bngen.runtime"):
        hint = "this one is compiled already: call it"
    elif "torch" in {base.__module__.partition(".")[0] for base in type(thing).__mro__}:
        hint = "networks are written in bngen's own language: see bg.program, and bg.models"
    return error(f"{label}: takes a program, got {type(thing).__name__}", hint)


def check_function(fn: Any, label: str = "program") -> None:
    """Raise unless calling ``fn`` can give tensors: not so a class, nor what is paused inside."""
    if isinstance(fn, type):
        raise error(f"{label}: {fn.__name__} is a class", "decorate a function")
    if not callable(fn):
        raise error(f"{label}: {fn!r} is no function")
    name, loc = name_and_loc(fn)
    inner = fn if hasattr(fn, "__code__") else getattr(fn, "__func__", fn)
    for is_so, what in (
        (inspect.isgeneratorfunction, "a generator"),
        (inspect.iscoroutinefunction, "async"),
        (inspect.isasyncgenfunction, "async"),
    ):
        if is_so(inner):
            hint = "a program is a plain function that returns tensors"
            raise ProgramError(f"{name}: is {what}", loc=loc, hint=hint)


def name_and_loc(fn: Callable[..., Any]) -> tuple[str, SourceLoc | None]:
    """What a function is called in messages and graphs, and where it is written."""
    name = getattr(fn, "__name__", type(fn).__name__)
    code = getattr(fn, "__code__", None)
    loc = SourceLoc(code.co_filename, code.co_firstlineno) if code else None
    return ("program" if name == "<lambda>" else name), loc
