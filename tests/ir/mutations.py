"""Texts that are nearly right: what a hand, a disk or an enemy makes of a printed program.

`mutated` changes a few tokens of a text; it knows nothing of what they mean. `text_of_nothing`
draws from the alphabet of tokens alone.
"""

from __future__ import annotations

import random
import re

_PIECE = re.compile(r"\n|[ \t]+|'[^'\n]*'|[A-Za-z_][\w.:]*|[-+]?[0-9][0-9.eE+-]*|.", re.DOTALL)
_NUMBER = re.compile(r"[-+]?[0-9.]+")

EXTREMES = (
    "0", "-1", "1", "2", "3", "7", "64", "-0.0", "0.5", "1e308", "1e999", "inf", "-inf", "nan",
    "-nan", "255", "256", "65536", "2147483647", "2147483648", "-2147483649", "4294967295",
    "4294967296",
    "4611686018427387904", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
    "1" + "0" * 30, "9" * 5000, "1." + "3" * 5000, "0x10", "1_000", "٣", "()", "(1,)", "(1, 2)",
    "(0, 0)", "(1, 1, 1, 1)", "(-1, 1)", "('a',)", "None", "True", "False", "'text'", "''",
)  # fmt: skip
WORDS = (
    "f32", "f64", "i32", "i64", "u8", "b1", "f16", "input", "parameter", "buffer", "update",
    "return", "program", "init", "_", "axes", "stride", "shape", "groups", "value", "dtype",
    "padding", "row_groups",
    "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "max_pool2d", "max_pool2d_grad",
    "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool2d_grad", "reshape", "one_hot", "sum",
    "amax", "cat", "slice", "matmul", "cast", "constant", "random_uniform", "bn_stats", "bn_update",
    "batch_norm", "batch_norm_grad", "bn_grad_input", "bn_merge_stats", "partial_sum", "neg",
    "pow",
)  # fmt: skip
MARKS = (
    "(", ")", "{", "}", "[", "]", "=", ":", ",", "#", "'", '"', "\\", "\n", "\r", "\x00", "\x85",
    "\u2028", "\ud800", "é", "²", "\U0001f600", "\ufeff", ";", "'\\ud800'", "'\\x'",
    "'\\N{BULLET}'", "'\\U7fffffff'", "'\\0'",
)  # fmt: skip


def pieces(text: str) -> list[str]:
    """The tokens of a text, white space and line breaks included."""
    return _PIECE.findall(text)


def mutated(text: str, rng: random.Random, most: int = 3) -> str:
    """The text with one to ``most`` changes."""
    parts = pieces(text)
    for _ in range(rng.randint(1, most)):
        parts = rng.choice(_CHANGES)(parts, rng) or ["\n"]
    return "".join(parts)


def text_of_nothing(rng: random.Random) -> str:
    """Tokens in no order."""
    alphabet = (*EXTREMES, *WORDS, *MARKS, "x", "y")
    drawn = [rng.choice(alphabet) for _ in range(rng.randint(0, 60))]
    return rng.choice(("", "program p {\n")) + " ".join(drawn)


def _at(parts: list[str], rng: random.Random) -> int:
    return rng.randrange(len(parts))


def _drop(parts, rng):
    i = _at(parts, rng)
    return parts[:i] + parts[i + 1 :]


def _double(parts, rng):
    i = _at(parts, rng)
    return parts[:i] + [parts[i]] * 2 + parts[i + 1 :]


def _swap(parts, rng):
    i, j = _at(parts, rng), _at(parts, rng)
    parts[i], parts[j] = parts[j], parts[i]
    return parts


def _number(parts, rng):
    numbers = [i for i, p in enumerate(parts) if _NUMBER.fullmatch(p)]
    if numbers:
        parts[rng.choice(numbers)] = rng.choice(EXTREMES)
    return parts


def _small_number(parts, rng):
    """One that may well fit elsewhere: such programs are wrong in their shapes alone."""
    numbers = [i for i, p in enumerate(parts) if _NUMBER.fullmatch(p)]
    if numbers:
        parts[rng.choice(numbers)] = str(rng.randint(0, 9))
    return parts


def _same_number(parts, rng):
    """One number, everywhere: shapes may agree again."""
    numbers = [p for p in parts if _NUMBER.fullmatch(p)]
    if not numbers:
        return parts
    old, new = rng.choice(numbers), rng.choice((rng.choice(EXTREMES), str(rng.randint(0, 9))))
    return [new if p == old else p for p in parts]


def _word(parts, rng):
    words = [i for i, p in enumerate(parts) if p[:1].isalpha()]
    if words:
        parts[rng.choice(words)] = rng.choice((rng.choice(WORDS), parts[rng.choice(words)]))
    return parts


def _same_word(parts, rng):
    """One word, everywhere: another element type or name throughout."""
    words = [p for p in parts if p[:1].isalpha()]
    if not words:
        return parts
    old, new = rng.choice(words), rng.choice(WORDS)
    return [new if p == old else p for p in parts]


def _mark(parts, rng):
    return _insert(parts, rng, rng.choice(MARKS))


def _nest(parts, rng):
    opened, closed = rng.choice((("(", ")"), ("[", "]"), ("{", "}"), ("'", "'"), ("((1,), ", ")")))
    depth = rng.choice((2, 40, 3000))
    i = _at(parts, rng)
    inner = [opened] * depth + [parts[i]] + [closed] * rng.choice((depth, 0))
    return parts[:i] + inner + parts[i + 1 :]


def _many(parts, rng):
    i = _at(parts, rng)
    return parts[:i] + [parts[i]] * 3000 + parts[i + 1 :]


def _insert(parts, rng, piece):
    i = _at(parts, rng)
    return parts[:i] + [piece] + parts[i:]


def _lines(parts, rng):
    lines = "".join(parts).split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        del lines[i]
    elif how == 1:
        lines.insert(j, lines[i])
    elif how == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines = lines[:i]
    return pieces("\n".join(lines))


_CHANGES = (
    _drop, _double, _swap, _number, _number, _small_number, _small_number, _same_number,
    _same_number, _word, _word, _same_word, _mark, _nest, _many, _lines,
)  # fmt: skip
