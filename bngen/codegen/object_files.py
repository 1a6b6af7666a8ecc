"""What object files need from outside, read from their symbol tables.

In: object files as LLVM writes them: ELF, Mach-O or COFF, of 64 bits, in either byte order. Out:
`Imports`. A manifest lists them, for whoever links the objects without TVM's runtime.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_POINTER = "__TVMBackend"
"""What the names of variables begin with that TVM's loader sets."""


@dataclass(frozen=True)
class Imports:
    """What objects need before their kernels can be called.

    Attributes:
        functions: symbols that they leave undefined: of the C library, and of TVM's ffi.
        pointers: variables in them that have to hold the address of a function of TVM's
            c_backend_api.h: ``__TVMBackendParallelLaunch`` that of ``TVMBackendParallelLaunch``.
    """

    functions: tuple[str, ...]
    pointers: tuple[str, ...]


@dataclass(frozen=True)
class _Symbol:
    name: str
    defined: bool


def imports_of(objects: Iterable[bytes]) -> Imports:
    """What object files need together.

    Raises:
        ValueError: for what is no object file of these kinds.
    """
    symbols = {symbol for content in objects for symbol in _symbols(content)}
    pointers = {s.name for s in symbols if s.defined and s.name.startswith(_POINTER)}
    provided = {s.name for s in symbols if s.defined}
    needed = {s.name for s in symbols if not s.defined} - provided
    return Imports(tuple(sorted(needed)), tuple(sorted(pointers)))


def _symbols(content: bytes) -> Iterator[_Symbol]:
    """The global symbols of an object file, as C spells them."""
    if content[:5] == b"\x7fELF\x02":
        return _elf(content, ">" if content[5] == 2 else "<")
    if content[:4] == b"\xcf\xfa\xed\xfe":
        return _macho(content)
    if content[:2] in (b"\x64\x86", b"\x64\xaa"):
        return _coff(content)
    raise ValueError(f"no object file of 64 bits: it begins with {content[:8]!r}")


def _elf(content: bytes, order: str) -> Iterator[_Symbol]:
    """``Elf64_Ehdr``, ``Elf64_Shdr`` and ``Elf64_Sym`` of elf.h."""
    (sections,) = struct.unpack_from(f"{order}Q", content, 0x28)
    size, count = struct.unpack_from(f"{order}HH", content, 0x3A)
    headers = [
        struct.unpack_from(f"{order}IIQQQQIIQQ", content, sections + i * size) for i in range(count)
    ]
    for _, kind, _, _, start, length, link, _, _, step in headers:
        if kind != _SHT_SYMTAB:
            continue
        names = headers[link][4]
        for at in range(start + step, start + length, step):
            name, info, _, section = struct.unpack_from(f"{order}IBBH", content, at)
            if name and info >> 4 != _STB_LOCAL:
                yield _Symbol(_text(content, names + name), section != 0)


def _macho(content: bytes) -> Iterator[_Symbol]:
    """``mach_header_64``, ``symtab_command`` and ``nlist_64`` of loader.h and nlist.h."""
    (commands,) = struct.unpack_from("<I", content, 16)
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", content, at)
        if command == _LC_SYMTAB:
            start, count, names, _ = struct.unpack_from("<IIII", content, at + 8)
            for i in range(count):
                name, kind = struct.unpack_from("<IB", content, start + 16 * i)
                if kind & _N_EXT and not kind & _N_STAB:
                    text = _text(content, names + name).removeprefix("_")
                    yield _Symbol(text, kind & _N_TYPE != 0)
        at += size


def _coff(content: bytes) -> Iterator[_Symbol]:
    """``IMAGE_FILE_HEADER`` and ``IMAGE_SYMBOL`` of winnt.h."""
    start, count = struct.unpack_from("<II", content, 8)
    names, i = start + 18 * count, 0
    while i < count:
        at = start + 18 * i
        zero, offset = struct.unpack_from("<II", content, at)
        section, _, kind, more = struct.unpack_from("<hHBB", content, at + 12)
        if kind in (_EXTERNAL, _WEAK_EXTERNAL):
            short = content[at : at + 8].rstrip(b"\0") if zero else b""
            # A weak one brings its definition along.
            defined = section != 0 or kind == _WEAK_EXTERNAL
            yield _Symbol(short.decode() or _text(content, names + offset), defined)
        i += 1 + more


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(0, at)].decode()


_SHT_SYMTAB, _STB_LOCAL = 2, 0
_LC_SYMTAB, _N_STAB, _N_TYPE, _N_EXT = 2, 0xE0, 0x0E, 0x01
_EXTERNAL, _WEAK_EXTERNAL = 2, 105
