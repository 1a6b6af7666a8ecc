"""From the PROGRAM of a command line to a program that is traced and ready to build.

In: ``densenet121`` (a built-in) or ``net.py:make`` (a ``@bg.program``, or a function that returns
one and may take ``batch=`` and ``image=``). Out: the program. Whatever is wrong with the name, the
file or the code inside it comes out as one `BngenError` line.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from bngen.errors import BngenError, ProgramError, SourceLoc, UsageError
from bngen.options import PRECISIONS


def load_program(
    spec: str, batch: int | None = None, image: int | None = None, dtype: str = PRECISIONS[0]
) -> Any:
    """The program a command line names.

    Args:
        spec: a built-in's name, or ``file.py:function``.
        batch: batch size; the program's own default when missing.
        image: height and width of the images; the program's own default when missing.
        dtype: of `PRECISIONS`: as the program is written, or what `bngen.autocast` makes of it.

    Raises:
        UsageError: for a name, file or function that is not there, or one that takes no
            ``batch`` or ``image`` when these are given.
        ProgramError: for an error in the user's own code, with its file and line.
    """
    import bngen.lang  # before a file called numpy.py can take NumPy's place  # noqa: F401

    sizes = {k: v for k, v in (("batch", batch), ("image", image)) if v is not None}
    path, _, function = spec.partition(":")
    if not path.endswith(".py"):
        return _in_precision(_builtin(spec, sizes), dtype)
    with _importable(Path(path).parent), _blaming(Path(path)):
        module = _import_file(Path(path))
        chosen = _pick(module, path, function)
        return _in_precision(_traced(_called(chosen, spec, sizes), spec), dtype)


def step_program(
    spec: str, batch: int | None = None, image: int | None = None, dtype: str = PRECISIONS[0]
) -> Any:
    """The program of a training step: `load_program`, but built-in networks end in a loss.

    They drop nothing out, so that every run of them computes the same.
    """
    from bngen.models import MODELS, make

    if spec not in MODELS:
        return load_program(spec, batch, image, dtype)
    dropout = 0.0 if MODELS[spec].has_dropout else None
    given = {k: v for k, v in (("batch", batch), ("image", image)) if v is not None}
    return _in_precision(make(spec, loss=True, dropout=dropout, **given), dtype)


def trained(graph: Any) -> list[str]:
    """Names of the parameters; of a program that holds none, its floating-point arguments."""
    own = [i.name for i in graph.inputs if i.kind == "parameter"]
    return own or [i.name for i in graph.inputs if i.value.type.is_float and i.kind == "input"]


def _in_precision(program: Any, dtype: str) -> Any:
    from bngen.lang.mixed import autocast

    return program if dtype == PRECISIONS[0] else autocast(program, dtype)


# --- built-ins --------------------------------------------------------------------------------


def _builtin(name: str, sizes: dict[str, int]) -> Any:
    from bngen import models  # NumPy comes with it: not at the top, for the sake of --help

    if name not in models.MODELS:
        if Path(name).is_dir():
            hint = "name a file as file.py:function; explain takes folders that build has written"
            raise UsageError(f"{name} is a folder, not a program", hint=hint)
        if near := models.nearest(name):
            hint = f"did you mean {' or '.join(near)}?"
            raise UsageError(f"no built-in program {name!r}", hint=hint)
        what = f"no built-in program {name!r}; there are {', '.join(models.PUBLIC)}"
        raise UsageError(what, hint="name a file as file.py:function")
    try:
        program = models.make(name, **sizes)
        _ = program.graph
    except ProgramError as error:
        # Sizes a network cannot take: the line it names would be one of bngen's own.
        raise UsageError(error.what, hint=error.hint) from error
    return program


# --- the user's file --------------------------------------------------------------------------


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give the path of a Python file"
        raise UsageError(f"no file {path}", hint=hint)
    spec = importlib.util.spec_from_file_location(f"bngen_program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for the module of a class
    with redirect_stdout(sys.stderr):  # standard output is kept for the command's result
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as ``python file.py`` does, but only while it is read.

    Left in place, a neighbour called ``tvm.py`` would be what the compiler imports next.
    """
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _pick(module: ModuleType, path: str, function: str) -> Any:
    """The attribute called ``function``, or the file's only program when no name is given."""
    programs = {k: v for k, v in vars(module).items() if _is_program(v)}
    functions = {k for k, v in vars(module).items() if _is_own_function(v, module)}
    if function and hasattr(module, function):
        return getattr(module, function)
    if not function and len(programs) == 1:
        return next(iter(programs.values()))
    there = sorted({*programs, *functions})
    missing = f"{path} has no {function!r}" if function else f"which program of {path}?"
    near = difflib.get_close_matches(function, there, 3)
    tail = f"did you mean {' or '.join(near)}?" if near else f"write {path}:function"
    raise UsageError(f"{missing}; it has {', '.join(there) or 'no program'}", hint=tail)


def _called(chosen: Any, spec: str, sizes: dict[str, int]) -> Any:
    """A program as it is; a function called with the sizes it takes."""
    if _is_program(chosen):
        taken: set[str] = set()
    elif callable(chosen):
        taken = _keywords(chosen, spec)
    else:
        raise UsageError(f"{spec} is a {type(chosen).__name__}, neither a program nor a function")
    for name in sizes:
        if name not in taken:
            raise UsageError(
                f"{spec} takes no {name}",
                hint=f"drop --{name}, or name a function that takes {name}=",
            )
    if _is_program(chosen):
        return chosen
    with redirect_stdout(sys.stderr):
        return chosen(**sizes)


def _traced(program: Any, spec: str) -> Any:
    """The program, once tracing it has succeeded: errors in it belong to the user's file."""
    if not _is_program(program):
        raise UsageError(
            f"{spec} returned a {type(program).__name__}, not a program",
            hint="decorate it with @bg.program, or return what such a decorator made",
        )
    _ = program.graph  # traces it here, where an error is known to be the user's
    return program


def _is_program(thing: Any) -> bool:
    from bngen.lang.program import Program

    return isinstance(thing, Program)


def _is_own_function(thing: Any, module: ModuleType) -> bool:
    return inspect.isfunction(thing) and thing.__module__ == module.__name__


def _keywords(function: Callable, spec: str) -> set[str]:
    """Which of batch and image a function takes by keyword.

    Raises:
        UsageError: when it cannot be called with these alone.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # Written in C.
        parameters = {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        p.name for p in parameters.values()
        if p.default is p.empty and p.kind not in kinds and p.name not in ("batch", "image")
    ]  # fmt: skip
    if needed:
        code = getattr(function, "__code__", None)
        raise UsageError(
            f"{spec} is no program, but a function that needs {', '.join(needed)}",
            loc=SourceLoc(code.co_filename, code.co_firstlineno) if code else None,
            hint="write @bg.program above it, or name a function that returns a program",
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {"batch", "image"}
    return {"batch", "image"} & set(parameters)


# --- whose fault ------------------------------------------------------------------------------


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn what the user's code raises into one line that names the file and line."""
    try:
        yield
    except BngenError:
        raise
    except SyntaxError as error:
        where = SourceLoc(error.filename or str(path), error.lineno or 1)
        raise ProgramError(f"syntax error: {error.msg}", loc=where) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = _last_line_in(path, error)
        if where is None and not _raised_by_bngen(error):
            where = SourceLoc(str(path), 1)  # a file that cannot be read, say
        if where is None:
            raise
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ProgramError(text, loc=where) from error


def _raised_by_bngen(error: BaseException) -> bool:
    """Whether one of bngen's own lines raised it, but for those that import and call."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = Path(__file__).resolve().parent
    file = Path(frame.f_code.co_filename).resolve()
    return package in file.parents and file != Path(__file__).resolve()


def _last_line_in(path: Path, error: BaseException) -> SourceLoc | None:
    """The innermost line of the user's folder on the way to the error."""
    folder = path.resolve().parent
    package = Path(__file__).resolve().parent
    lines = [
        SourceLoc(frame.filename, frame.lineno or 1)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and folder in Path(frame.filename).resolve().parents
        and package not in Path(frame.filename).resolve().parents
    ]
    return lines[-1] if lines else None
