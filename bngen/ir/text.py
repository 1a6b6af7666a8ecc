"""The text form of a graph, and the parser that reads back exactly what was printed.

::

    program cpl {
      input x : f32[8,64,56,56]
      parameter w : f32[128,64,1,1] init=('kaiming_uniform', 2.23)
      buffer running_mean : f32[128]
      conv2d = conv2d(x, w) {padding=(1, 1, 1, 1)} : f32[8,128,56,56]
      batch_norm, batch_norm_mean, batch_norm_var = batch_norm(conv2d, _, _) : f32[..], f32[..], ..
      update running_mean = bn_update_mean
      return loss = batch_norm
    }

One node a line; attributes at their defaults are left out; ``_`` is an operand that is missing;
a name that is no dotted identifier stands in quotes; ``#`` starts a comment. ``return (a,)`` is a
call that returns a tuple of one, ``return a`` one that returns the tensor. Source locations are
printed as comments on request and are not read back.

What the parser accepts, `verify` accepts. It takes time in proportion to the text, and the sizes
below bound what it holds; no printed program comes near them.
"""

from __future__ import annotations

import math
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from bngen.dtypes import OF_SHORT
from bngen.errors import ProgramError
from bngen.ir.attributes import shown, type_misfit
from bngen.ir.build import complete, plain, with_missing_operands
from bngen.ir.node import INPUT_KINDS, NAME, Graph, Input, Node
from bngen.ir.ops import infer
from bngen.ir.ops.row import ShapeError
from bngen.ir.types import TensorType, Value

MOST_TEXT = 8 << 20
"""Characters of a text."""
MOST_NESTED = 32
"""Tuples within tuples."""
MOST_DIGITS = 400
"""Characters of a number; a float has no more than 25, as printed."""
MOST_MESSAGE = 500
"""Characters of what an error repeats of a line."""


TOKEN = re.compile(
    rf"""\s*(?:
      (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>[-+](?:inf|nan)\b|[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)
    | (?P<name>{NAME.pattern})
    | (?P<mark>[(){{}}\[\]=:,])
    | (?P<comment>\#.*)
    )""",
    re.VERBOSE,
)
WORDS = {"True": True, "False": False, "None": None, "inf": math.inf, "nan": math.nan}


def parse_graph(text: str) -> Graph:
    """Read the text form.

    Raises:
        ProgramError: naming the line, for text that is not a well-formed, well-typed program.
    """
    if not isinstance(text, str):
        raise ProgramError(f"a program's text is a str, not {type(text).__name__}")
    if len(text) > MOST_TEXT:
        raise ProgramError(f"a text of {len(text)} characters, which may have {MOST_TEXT}")
    return _Parser(text).graph()


class _Parser:
    """Recursive descent over lines; ``self.tokens`` holds what is left of the current one."""

    def __init__(self, text: str):
        self.lines = text.splitlines()
        self.at = -1
        self.tokens: deque[tuple[str, str]] = deque()
        self.depth = 0
        self.values: dict[str, Value] = {}
        self.inputs: set[Value] = set()
        self.updated: set[Value] = set()

    # Lines and tokens.

    def fail(self, what: str, hint: str | None = None) -> NoReturn:
        if len(what) > MOST_MESSAGE:
            what = f"{what[:MOST_MESSAGE]}..."
        raise ProgramError(f"line {max(self.at, 0) + 1}: {what}", hint=hint)

    def next_line(self) -> bool:
        """Go to the next line that holds anything; False at the end of the text."""
        while self.at + 1 < len(self.lines):
            self.at += 1
            self.tokens = self.tokenize(self.lines[self.at])
            if self.tokens:
                return True
        return False

    def tokenize(self, line: str) -> deque[tuple[str, str]]:
        tokens, at, line = deque(), 0, line.rstrip()
        while at < len(line):
            match = TOKEN.match(line, at)
            if not match:
                self.fail(f"cannot read {shown(line[at:].strip())}")
            if match.lastgroup != "comment":
                tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        return tokens

    def peek(self) -> str:
        return self.tokens[0][1] if self.tokens else ""

    def accept(self, mark: str) -> bool:
        if self.tokens and self.tokens[0] in (("mark", mark), ("name", mark)):
            self.tokens.popleft()
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            self.fail_expecting(repr(mark), self.peek())

    def fail_expecting(self, what: str, found: str) -> NoReturn:
        self.fail(f"expected {what}, found {shown(found or 'the end of the line')}")

    def listed(self, item: Callable[[], Any], end: str) -> list[Any]:
        """Items separated by commas up to ``end``, which is taken; a trailing comma is allowed."""
        items = []
        while not self.accept(end):
            items.append(item())
            if not self.accept(","):
                self.expect(end)
                break
        return items

    # Pieces.

    def name(self) -> str:
        kind, text = self.tokens[0] if self.tokens else ("", "")
        if kind == "name":
            self.tokens.popleft()
            return text
        if kind == "string":
            return self.literal()
        self.fail_expecting("a name", text)

    def operand(self) -> Value | None:
        return None if self.accept("_") else self.value()

    def value(self) -> Value:
        name = self.name()
        if name not in self.values:
            self.fail(f"{shown(name)} is not defined here", "define it on an earlier line")
        return self.values[name]

    def type(self) -> TensorType:
        short = self.name()
        if short not in OF_SHORT:
            self.fail(f"unknown element type {shown(short)}", f"use one of {', '.join(OF_SHORT)}")
        self.expect("[")
        type_ = TensorType(tuple(self.listed(self.literal, "]")), OF_SHORT[short].name)
        if wrong := type_misfit(type_):
            self.fail(wrong)
        return type_

    def literal(self) -> Any:
        if self.accept("("):
            return self.tuple()
        kind, text = self.tokens.popleft() if self.tokens else ("", "")
        if kind == "string":
            return self.unquoted(text)
        if kind == "name" and text in WORDS:
            return WORDS[text]
        if kind == "number":
            return self.number(text)
        self.fail_expecting("a value", text)

    def tuple(self) -> tuple[Any, ...]:
        if self.depth == MOST_NESTED:
            self.fail(f"more than {MOST_NESTED} tuples within each other")
        self.depth += 1
        items = tuple(self.listed(self.literal, ")"))
        self.depth -= 1
        return items

    def unquoted(self, text: str) -> str:
        try:
            return unquote(text)
        except ValueError as error:
            self.fail(f"{shown(text)}: {error}")

    def number(self, text: str) -> int | float:
        if len(text) > MOST_DIGITS:
            self.fail(f"a number of {len(text)} characters", f"at most {MOST_DIGITS}")
        if not re.fullmatch(r"[-+]?[0-9]+", text):
            return plain(float(text))
        if not -(2**63) <= int(text) < 2**63:
            self.fail(f"{shown(int(text))} does not fit into 64 bits")
        return int(text)

    def attributes(self) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for key, value in self.listed(self.attribute, "}"):
            if key in attrs:
                self.fail(f"attribute {shown(key)} is given twice")
            attrs[key] = value
        return attrs

    def attribute(self) -> tuple[str, Any]:
        key = self.name()
        self.expect("=")
        return key, self.literal()

    # Lines.

    def graph(self) -> Graph:
        if not self.next_line():
            self.fail("the text is empty", "start with 'program <name> {'")
        self.expect("program")
        name = self.name()
        self.expect("{")
        inputs, nodes, updates = [], [], []
        while True:
            self.end_of_line()
            if not self.next_line():
                self.fail("the program has no return line")
            # A node may assign a value called 'input' only in quotes, so keywords come first.
            if self.tokens[0][0] == "name" and self.peek() in INPUT_KINDS:
                inputs.append(self.input_line())
            elif self.accept("update"):
                updates.append(self.update_line())
            elif self.accept("return"):
                break
            else:
                nodes.append(self.node_line())
        labels, outputs, is_tuple = self.return_line()
        self.closing_brace()
        return Graph(name, tuple(inputs), tuple(nodes), outputs, tuple(updates), labels, is_tuple)

    def end_of_line(self) -> None:
        if self.tokens:
            self.fail(f"{shown(self.peek())} is left over at the end of the line")

    def closing_brace(self) -> None:
        self.end_of_line()
        if not self.next_line():
            self.fail("the closing '}' is missing")
        self.expect("}")
        self.end_of_line()
        if self.next_line():
            self.fail(f"{shown(self.peek())} follows the end of the program")

    def define(self, name: str, type_: TensorType) -> Value:
        if name in self.values:
            self.fail(f"{shown(name)} is assigned twice", "give each value a name of its own")
        self.values[name] = Value(name, type_)
        return self.values[name]

    def input_line(self) -> Input:
        kind, name = self.name(), self.name()
        self.expect(":")
        value = self.define(name, self.type())
        init: Any = ()
        if self.accept("init"):
            self.expect("=")
            init = self.literal()
            if not isinstance(init, tuple):
                self.fail(f"init is {shown(init)}", "write ('name', number, ...)")
        self.inputs.add(value)
        return Input(value, kind, init)

    def update_line(self) -> tuple[Value, Value]:
        target = self.value()
        self.expect("=")
        new = self.value()
        if target not in self.inputs:
            self.fail(f"{shown(target.name)} is no input, so it cannot be updated")
        if target in self.updated:
            self.fail(f"{shown(target.name)} is updated twice")
        self.updated.add(target)
        if target.type != new.type:
            self.fail(f"{shown(target.name)} is {target.type}, its new value {new.type}")
        return target, new

    def node_line(self) -> Node:
        names = self.listed(self.name, "=")
        op = self.name()
        self.expect("(")
        operands = self.listed(self.operand, ")")
        attrs = self.attributes() if self.accept("{") else {}
        self.expect(":")
        types = [self.type()]
        while self.accept(","):
            types.append(self.type())
        try:
            inputs, full = with_missing_operands(op, operands), complete(op, attrs)
            inferred = infer(op, [v and v.type for v in inputs], full)
        except ShapeError as error:
            self.fail(str(error))
        if tuple(types) != inferred or len(names) != len(types):
            said, means = (", ".join(map(str, ts)) for ts in (types, inferred))
            self.fail(f"{len(names)} result(s) of {op} typed {said}; it gives {means}")
        outputs = tuple(self.define(n, t) for n, t in zip(names, types, strict=True))
        return Node(op, inputs, outputs, full)

    def return_line(self) -> tuple[tuple[str, ...], tuple[Value, ...], bool]:
        is_tuple = self.accept("(")
        items = self.listed(self.returned, ")") if is_tuple else []
        while not is_tuple and self.tokens:
            items.append(self.returned())
            if self.tokens:
                self.expect(",")
        labels = [label for label, _ in items if label is not None]
        if labels and len(labels) != len(items):
            self.fail("some results have labels and some have none")
        if len(set(labels)) != len(labels):
            self.fail("two results have one label")
        return tuple(labels), tuple(v for _, v in items), is_tuple

    def returned(self) -> tuple[str | None, Value]:
        if len(self.tokens) > 1 and self.tokens[1] == ("mark", "="):
            label = self.name()
            self.expect("=")
            return label, self.value()
        return None, self.value()


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.?)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def unquote(text: str) -> str:
    """The string that a quoted token, written as `repr` writes it, stands for.

    Raises:
        ValueError: for another escape, and for what is no character.
    """

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code in _ESCAPED:
            return _ESCAPED[code]
        if len(code) < 3 or int(code[1:], 16) > sys.maxunicode:
            raise ValueError(f"unknown escape {match[0]!r}")
        return chr(int(code[1:], 16))

    inner = _ESCAPE.sub(character, text[1:-1])
    if any("\ud800" <= c <= "\udfff" for c in inner):
        raise ValueError("half of a surrogate pair is no character")
    return inner
