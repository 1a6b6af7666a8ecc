"""The command line: commands and flags in, a call of a command module and an exit status out.

Flags come from `options.OPTIONS`; what a command does lives in a module of its own
(`build_command` and so on), imported only when it runs, so that ``--help`` needs click alone.

Exit status: 0, 1 (a check failed), 2 (usage, bad input), 101 (a bug in bngen), 130 (interrupted),
141 (whoever reads the result has left).
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import click

from bngen import options
from bngen.cli import console
from bngen.errors import INTERRUPTED, BngenError, ToolchainError
from bngen.version import __version__

OK, CHECK_FAILED, BAD_INPUT, BUG, BROKEN_PIPE = 0, 1, 2, 101, 141

_THE_WORLDS = frozenset((
    errno.EACCES, errno.EAGAIN, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOMEM, errno.ENOSPC,
    errno.ENOTDIR, errno.ENXIO, errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETXTBSY,
))  # fmt: skip
"""Errors that come from disks, limits and rights, not from what bngen asks for."""


class _ChoiceList(click.ParamType):
    """``a,b``: a comma-separated list drawn from fixed choices."""

    name = "list"

    def __init__(self, choices: tuple[str, ...]):
        self._choices = choices

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return ",".join(self._choices)

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        unknown = [word for word in words if word not in self._choices]
        if unknown:
            self.fail(f"{unknown[0]!r} is none of {', '.join(self._choices)}", param, ctx)
        return tuple(dict.fromkeys(words))


class _Command(click.Command):
    """A command that suggests the flag meant by a mistyped ``-mcpu`` or ``-mattr``.

    ``-mtriple`` is no flag but a part of the target: whoever writes it beside is told to quote it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Click sees `-mcpv` as a cluster of one-letter flags and would blame `-m`.
        options_ = [param for param in self.params if isinstance(param, click.Option)]
        known = [f for o in options_ for f in o.opts if f.startswith("-m")]
        takes_value = {f for o in options_ if not (o.is_flag or o.count) for f in o.opts}
        for before, word in zip(("", *args), args, strict=False):
            flag = word.split("=")[0]
            if flag in ("-mtriple", "--mtriple"):
                message = f"{flag} is a part of the target, to be quoted"
                raise click.UsageError(f'{message}: --target "llvm -mtriple=... -mcpu=..."', ctx)
            if flag.startswith("-m") and flag not in known and before not in takes_value:
                near = difflib.get_close_matches(flag, known, 1, 0.5) or known
                message = f"No such option '{flag}'. Did you mean {' or '.join(near)}?"
                raise click.UsageError(message, ctx)
        return super().parse_args(ctx, args)


def _click_option(row: options.Option) -> Callable:
    """The table's row as a click option."""
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "text": lambda: {},
        "path": lambda: {"type": click.Path()},
        "int": lambda: {"type": click.IntRange(row.minimum)},
        "choice": lambda: {"type": click.Choice(row.choices)},
        "list": lambda: {"type": _ChoiceList(row.choices)},
        "flag": lambda: {"is_flag": True},
        "count": lambda: {"count": True},
    }
    show = row.kind not in ("flag", "count") and (row.default_text or True)
    return click.option(
        *row.flags, row.name, default=row.default, show_default=show,
        envvar=row.env or None, show_envvar=bool(row.env),
        metavar=row.metavar or None, help=row.help.replace("`", ""), **kinds[row.kind](),
    )  # fmt: skip


def _with_options(command: str) -> Callable:
    """Decorate a command with its rows of the option table."""

    def decorate(function: Callable) -> Callable:
        for row in reversed(tuple(options.options_of(command))):
            function = _click_option(row)(function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bngen")
def cli() -> None:
    """Fuse batch normalization into the convolutions around it, for training on CPUs."""


@cli.command(options.BUILD, cls=_Command)
@click.argument("program", default="densenet121")
@_with_options(options.BUILD)
def _build(**settings: Any) -> int:
    """Compile PROGRAM: a built-in network, or file.py:function. Default: densenet121."""
    from bngen.cli import build as build_command

    return build_command.run(build_command.BuildRequest(**_prepared(settings)))


@cli.command(options.VERIFY, cls=_Command)
@click.argument("program", default="densenet121")
@_with_options(options.VERIFY)
def _verify(**settings: Any) -> int:
    """Build PROGRAM, run it on awkward inputs and compare it with PyTorch and float64."""
    from bngen.cli import verify as verify_command

    return verify_command.run(verify_command.VerifyRequest(**_prepared(settings)))


@cli.command(options.BENCH, cls=_Command)
@click.argument("program", nargs=-1)
@_with_options(options.BENCH)
def _bench(**settings: Any) -> int:
    """Measure training steps of PROGRAMs beside PyTorch's. Default: densenet121."""
    from bngen.cli import bench as bench_command

    settings["program"] = settings["program"] or ("densenet121",)
    return bench_command.run(bench_command.BenchRequest(**_prepared(settings)))


@cli.command(options.TUNE, cls=_Command)
@click.argument("program", default="densenet121")
@_with_options(options.TUNE)
def _tune(**settings: Any) -> int:
    """Search the fastest schedules of PROGRAM's kernels on this CPU. Default: densenet121."""
    from bngen.cli import tune as tune_command

    return tune_command.run(tune_command.TuneRequest(**_prepared(settings)))


@cli.command(options.EXPLAIN, cls=_Command)
@click.argument("program", default="densenet121")
@_with_options(options.EXPLAIN)
def _explain(**settings: Any) -> int:
    """Show what PROGRAM becomes and why: stages, kernels, what was not fused; nothing is run.

    PROGRAM may be a folder that bngen build has written, too. Default: densenet121.
    """
    from bngen.cli import explain as explain_command

    request = explain_command.ExplainRequest(**_prepared(settings))
    return explain_command.run(request, _flags_given(click.get_current_context()))


@cli.command(options.PROFILE, cls=_Command)
@click.argument("program", default="densenet121")
@_with_options(options.PROFILE)
def _profile(**settings: Any) -> int:
    """Time each kernel of PROGRAM's training step, beside what the plan says of it."""
    from bngen.cli import profile as profile_command

    return profile_command.run(profile_command.ProfileRequest(**_prepared(settings)))


@cli.command(options.ABLATE, cls=_Command)
@click.argument("program", nargs=-1)
@_with_options(options.ABLATE)
def _ablate(**settings: Any) -> int:
    """Measure what each fusion level buys PROGRAMs. Default: densenet121 and resnet50."""
    from bngen.cli import ablate as ablate_command

    settings["program"] = settings["program"] or ("densenet121", "resnet50")
    return ablate_command.run(ablate_command.AblateRequest(**_prepared(settings)))


def _prepared(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the debug level where `options.debug_level` finds it."""
    if level := settings.pop("debug"):
        os.environ["BNGEN_DEBUG"] = str(level)
    return settings


def _flags_given(context: click.Context) -> dict[str, str]:
    """The flags on the command line, by the names of their options; defaults and variables not."""
    there = click.core.ParameterSource.COMMANDLINE
    return {
        param.name: max(param.opts, key=len)
        for param in context.command.params
        if isinstance(param, click.Option) and context.get_parameter_source(param.name) == there
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``bngen``; those of the process when missing.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _main(argv)


def _show_warning(message: Warning | str, *_place: Any) -> None:
    """In the place of Python's two lines, which name one of bngen's."""
    console.log(f"bngen: warning: {' '.join(str(message).split())}")


def _main(argv: list[str]) -> int:
    try:
        status = _invoke(argv)
        console.result("", end="")
        return status
    except click.ClickException as error:
        return _failed(_usage_line(error), BAD_INPUT, argv)
    except BngenError as error:
        return _failed(f"bngen: error: {error}", BAD_INPUT, argv)
    except KeyboardInterrupt:
        return _failed("bngen: interrupted; nothing was written", INTERRUPTED, argv)
    except BrokenPipeError:
        console.silence(sys.stdout)  # as by ``bngen ... | head -1``: end quietly, as `cat` does
        return BROKEN_PIPE
    except Exception as error:
        if line := _world_line(error):
            return _failed(line, BAD_INPUT, argv)
        # Whatever else escapes is a bug of bngen's, and is reported as one.
        return _failed(_bug_line(error), BUG, argv)


def _invoke(argv: list[str]) -> int:
    # Not `cli.main`, which handles interrupts and closed pipes in ways of its own.
    try:
        with cli.make_context("bngen", argv) as context:
            return cli.invoke(context) or OK
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return OK


def _usage_line(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "bngen"
    message = " ".join(error.format_message().split())
    return f"{command}: error: {message} (see {command} --help)"


def _bug_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"bngen: this is a bug in bngen, please report it: {text[:300]} "
        "(run again with --debug to see the traceback)"
    )


def _world_line(error: Exception) -> str | None:
    """What to say of an error that the machine is to blame for: full disks, lacking rights."""
    if isinstance(error, MemoryError):
        return f"bngen: error: {' '.join(('not enough memory', *map(str, error.args[:1])))}"
    if not isinstance(error, OSError):
        return None
    try:
        console.result("", end="")  # click writes to standard output by itself
    except ToolchainError as told:
        return f"bngen: error: {told}"
    except BrokenPipeError:  # which is not what went wrong
        console.silence(sys.stdout)
    if error.errno not in _THE_WORLDS:
        return None
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"bngen: error: {where}{error.strerror}"


def _failed(line: str, status: int, argv: Sequence[str]) -> int:
    if _wants_traceback(argv):
        console.log(traceback.format_exc().rstrip())
    console.log(line)
    return status


def _wants_traceback(argv: Sequence[str]) -> bool:
    # Looked up by hand: the error may be that the command line itself cannot be parsed.
    level = os.environ.get("BNGEN_DEBUG", "")
    return "--debug" in argv or (level.isdecimal() and level.strip("0") != "")


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """The ``bngen`` executable; a polite kill cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    console.open_missing_streams()
    status = main()
    console.settle()
    sys.exit(status)


if __name__ == "__main__":
    run()
