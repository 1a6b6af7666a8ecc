"""THE option table: one row makes a command-line flag, a ``BNGEN_*`` variable and a line of docs.

In: nothing. Out: `OPTIONS`, read by `cli` (flags), by `environment` (the Python interface) and by
`markdown_table` (the documentation). Nothing else in bngen reads a ``BNGEN_*`` variable by hand.
Imports the standard library only, so that ``bngen --help`` stays instant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bngen.errors import UsageError

BUILD, VERIFY, BENCH, TUNE = "build", "verify", "bench", "tune"
EXPLAIN, PROFILE, ABLATE = "explain", "profile", "ablate"
ALL = (BUILD, VERIFY, BENCH, TUNE, EXPLAIN, PROFILE, ABLATE)

FUSION_CHOICES = ("none", "rcf", "mvf", "bnff", "icf")
PRECISIONS = ("float32", "bfloat16")
EMIT_CHOICES = ("tir", "ll", "asm")
SHOW_CHOICES = ("graph", "plan", *EMIT_CHOICES)
MEMORY_FORMATS = CONTIGUOUS, CHANNELS_LAST = "contiguous_format", "channels_last"
RIVAL_CHOICES = (
    *FUSION_CHOICES, "eager", "channels-last", "compile", "compile-channels-last",
    "backend", "backend-channels-last", "backend-bf16", "jemalloc", "jemalloc-channels-last",
    "tcmalloc", "tcmalloc-channels-last", "bf16", "jemalloc-bf16", "tcmalloc-bf16",
)  # fmt: skip
RIVALS = ("none", "eager", "channels-last", "compile", "jemalloc-channels-last", "bf16")
DEBUG_LADDER = (
    "nothing",
    "tracebacks, and each pass with its time",
    "the graph after each pass",
    "each kernel: its sub-layers, the schedule rule, the knobs",
    "the scheduled TIR of each distinct kernel",
    "the assembly of each distinct kernel",
)


@dataclass(frozen=True)
class Option:
    """One row of the table.

    Attributes:
        name: the parameter's name in Python.
        kind: ``text``, ``int``, ``choice``, ``list`` (of choices, comma separated), ``flag``,
            ``count`` (repeatable flag) or ``path``.
        help: one clause for ``--help`` and the documentation.
        default: what holds when neither flag nor variable is given; ``None`` when it depends.
        default_text: how the default is shown when ``default`` does not say it.
        env: the environment variable; ``""`` for none.
        flags: spellings on the command line; none for what only a variable sets.
        choices: legal values of ``choice`` and ``list``.
        minimum: the smallest legal ``int``.
        metavar: the placeholder shown for the value.
        commands: the commands that take it.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    default_text: str = ""
    env: str = ""
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    minimum: int = 1
    metavar: str = ""
    commands: tuple[str, ...] = ALL

    @property
    def shown_default(self) -> str:
        """The default as documentation shows it."""
        if self.default_text:
            return self.default_text
        return "off" if self.kind in ("flag", "count") else str(self.default)


def _row(name: str, kind: str, help: str, **kw: Any) -> Option:
    kw.setdefault("env", f"BNGEN_{name.upper()}")
    kw.setdefault("flags", (f"--{name}",))
    return Option(name, kind, help, **kw)


OPTIONS: tuple[Option, ...] = (
    _row(
        "target", "text", "what to compile for: `llvm` and its flags in quotes, or JSON",
        default="llvm -mcpu=native", metavar="TARGET",
    ),
    _row(
        "mcpu", "text", "CPU of the target, e.g. native, znver4, x86-64-v3",
        default_text="part of the target", flags=("-mcpu", "--mcpu"), env="", metavar="CPU",
    ),
    _row(
        "mattr", "text", "features to add or take away, e.g. +avx2,-avx512f",
        default_text="part of the target", flags=("-mattr", "--mattr"), env="", metavar="LIST",
    ),
    _row(
        "fusion", "choice", "how far to fuse; each level includes the ones before it",
        default="icf", choices=FUSION_CHOICES,
        commands=(BUILD, VERIFY, BENCH, TUNE, EXPLAIN, PROFILE),
    ),
    _row(
        "memory_format", "choice", "how arrays of rank 4 lie: arguments, weights and results",
        flags=("--memory-format",), default=CONTIGUOUS, choices=MEMORY_FORMATS,
        commands=(BUILD, VERIFY, EXPLAIN),
    ),
    _row(
        "dtype", "choice", "what convolutions and matrix products compute with, and maps lie in",
        default=PRECISIONS[0], choices=PRECISIONS,
    ),
    _row(
        "batch", "int", "batch size of the program", metavar="N",
        default_text="the program's own; of networks: 8",
    ),
    _row(
        "image", "int", "height and width of the images", metavar="PIXELS",
        default_text="the program's own; of most networks: 224",
    ),
    _row(
        "threads", "int", "threads to run with", default_text="all of the machine",
        env="BNGEN_NUM_THREADS", metavar="N", commands=(VERIFY, BENCH, TUNE, PROFILE, ABLATE),
    ),
    _row(
        "schedules", "path", "folder of tuned schedule records that takes precedence",
        default_text="the user's own, then those of bngen", metavar="DIR",
    ),
    _row(
        "grad", "flag", "build the forward and backward pass together", default=False,
        commands=(BUILD, EXPLAIN),
    ),
    _row(
        "out", "path", "output folder", default_text="./bngen-out/<program>", metavar="DIR",
        commands=(BUILD,),
    ),
    _row(
        "emit", "list", "texts to write next to the objects, comma separated", default=(),
        default_text="none", choices=EMIT_CHOICES, commands=(BUILD,),
    ),
    _row(
        "show", "list", "texts to show, too: the program after each pass, and of the kernels",
        flags=("--emit",), env="", default=(), default_text="none", choices=SHOW_CHOICES,
        commands=(EXPLAIN,),
    ),
    _row(
        "html", "path", "write the explanation as a page to be opened in a browser", env="",
        default_text="none", metavar="FILE", commands=(EXPLAIN, PROFILE),
    ),
    _row(
        "trace", "path", "write one step as a trace that Chrome and Perfetto open", env="",
        default_text="none", metavar="FILE", commands=(PROFILE,),
    ),
    _row(
        "seed", "int", "seed of weights and inputs", default=0, minimum=0, metavar="N",
        commands=(VERIFY, BENCH, PROFILE, ABLATE),
    ),
    _row(
        "against", "list", "rivals, comma separated: PyTorch, bngen as its backend, bngen's levels",
        default=RIVALS, default_text=",".join(RIVALS), choices=RIVAL_CHOICES, commands=(BENCH,),
    ),
    _row("rounds", "int", "turns of each contender, or steps that are watched", default=5,
         metavar="N", commands=(BENCH, PROFILE, ABLATE)),
    _row(
        "kernels", "flag", "time each convolution kernel, too, beside oneDNN's bare convolution",
        default=False, commands=(BENCH,),
    ),
    _row(
        "startup", "flag", "start with empty caches, and once more with full ones",
        default=False, commands=(BENCH,),
    ),
    _row(
        "json_file", "path", "write the measurements as JSON", flags=("--json",), env="",
        default_text="none", metavar="FILE", commands=(BENCH, ABLATE),
    ),
    _row(
        "plot", "path", "folder for plots of the measurements", env="", default_text="none",
        metavar="DIR", commands=(BENCH, ABLATE),
    ),
    _row(
        "scarce", "flag", "race once more while another process streams through memory", env="",
        default=False, commands=(ABLATE,),
    ),
    _row(
        "traffic", "flag", "measure traffic, too, by perf or in a simulated cache: takes its time",
        env="", default=False, commands=(ABLATE,),
    ),
    _row(
        "trials", "int", "candidates tried for each kernel", default=24, metavar="N",
        commands=(TUNE,),
    ),
    _row(
        "records", "path", "folder that the records are written to", flags=("--out",), env="",
        default_text="the user's folder of records", metavar="DIR", commands=(TUNE,),
    ),
    _row(
        "ship", "flag", "write to the records that bngen is shipped with", env="",
        default=False, commands=(TUNE,),
    ),
    _row("json", "flag", "print the result as JSON", default=False,
         commands=(BUILD, VERIFY, TUNE, EXPLAIN, PROFILE)),
    _row("quiet", "flag", "no progress and no log on standard error", default=False),
    _row(
        "no_cache", "flag", "compile anew, and keep nothing for the next time",
        flags=("--no-cache",), default=False, commands=(BUILD, VERIFY),
    ),
    _row(
        "jobs", "int", "kernels that are compiled at once, by processes from 4 on", flags=(),
        commands=(), default_text="one for each CPU", metavar="N",
    ),
    _row(
        "shared_memory", "flag", "ranks of one machine exchange short arrays through memory",
        flags=(), commands=(), default=True, default_text="on",
    ),
    _row(
        "cache_dir", "path", "where bngen keeps what can be made again", flags=(), commands=(),
        default_text="the user's cache folder",
    ),
    _row(
        "dump", "path", "folder that the stages of each build are written to", metavar="DIR",
        flags=(), commands=(), default_text="none",
    ),
    _row(
        "fallback", "flag", "run a part of a PyTorch model that cannot be compiled in PyTorch",
        flags=(), commands=(), default=False,
    ),
    _row(
        "debug", "count", "show tracebacks; repeat to climb the ladder of BNGEN_DEBUG",
        default=0, minimum=0,
    ),
)  # fmt: skip


def options_of(command: str) -> Iterator[Option]:
    """The rows a command takes, in the table's order."""
    return (row for row in OPTIONS if command in row.commands)


def environment(name: str) -> Any:
    """Value of an option's variable, or its default; for callers of the Python interface.

    Raises:
        UsageError: when the variable holds something the option cannot be.
    """
    (row,) = (r for r in OPTIONS if r.name == name)
    text = os.environ.get(row.env, "").strip() if row.env else ""
    if not text:
        return row.default
    if row.kind in ("int", "count"):
        return _whole_number(row, text)
    if row.kind == "flag":
        return _yes_or_no(row, text)
    if row.kind == "choice" and text not in row.choices:
        raise UsageError(f"{row.env}={text} is none of {', '.join(row.choices)}")
    return text


def _whole_number(row: Option, text: str) -> int:
    if not text.isdecimal() or int(text) < row.minimum:
        raise UsageError(f"{row.env}={text} must be a whole number, at least {row.minimum}")
    return int(text)


def _yes_or_no(row: Option, text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True,
             "0": False, "false": False, "no": False, "off": False}  # fmt: skip
    if text.lower() not in words:
        raise UsageError(f"{row.env}={text} must be 1 or 0")
    return words[text.lower()]


def debug_level() -> int:
    """How far up the ladder of ``BNGEN_DEBUG`` to print; see `DEBUG_LADDER`."""
    return min(environment("debug"), len(DEBUG_LADDER) - 1)


def markdown_table() -> str:
    """The documentation's table of options."""
    lines = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for row in OPTIONS:
        listed = ", ".join(f"`{c}`" for c in row.commands)
        only = "" if set(row.commands) in ({*ALL}, set()) else f" ({listed} only)"
        choices = f": {', '.join(f'`{c}`' for c in row.choices)}" if row.choices else ""
        flag = " ".join((row.flags[0], row.metavar)).strip() if row.flags else ""
        cells = (_code(flag), _code(row.env), row.shown_default, f"{row.help}{choices}{only}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def debug_table() -> str:
    """The documentation's table of the ``BNGEN_DEBUG`` ladder."""
    head = ("| `BNGEN_DEBUG` | prints, besides what stands above |", "|---|---|")
    rows = (f"| {level} | {text} |" for level, text in enumerate(DEBUG_LADDER))
    return "\n".join((*head, *rows)) + "\n"
