"""Reads compiled HLO text: which collectives a program holds, and how large they are."""

from __future__ import annotations

import re
import typing

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "ragged-all-to-all")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


class Instruction(typing.NamedTuple):
    """One instruction of a program."""

    computation: str
    name: str
    kind: str  # "add", "all-gather", ...
    shapes: tuple[tuple[int, ...], ...]  # of its results
    bytes: int  # of its results
    in_loop: bool  # may run more than once a call of the program
    line: str


class Collective(typing.NamedTuple):
    """What one device receives from others in one collective; counted once, wherever it stands."""

    kind: str  # one of `KINDS`
    bytes: int  # of its result on one device
    shape: tuple[int, ...]  # of its largest result
    in_loop: bool  # may run more than once a step


def instructions(text: str) -> list[Instruction]:
    """Every instruction of a compiled program, `jit(f).lower(...).compile().as_text()`.

    Those of fused computations are among them: `kind` "fusion" stands for the whole, its parts follow by name.
    """
    found, calls, loops, computation = [], {}, set(), ""
    for line in text.splitlines():
        if (head := _COMPUTATION.match(line)) is not None:
            computation = head[1]
        elif (part := _INSTRUCTION.match(line)) is not None:
            name, result, kind, rest = part.groups()
            called = [c.strip("{} %") for group in _CALLED.findall(rest) for c in group.split(",")]
            calls.setdefault(computation, set()).update(called)
            if kind == "while":
                loops.update(called)
            shapes = tuple(_shape(dims) for _, dims in _SHAPE.findall(result))
            size = sum(_bytes(kind_, dims) for kind_, dims in _SHAPE.findall(result))
            found.append(Instruction(computation, name, kind, shapes, size, False, line.strip()))
    repeated, left = set(), list(loops)
    while left:
        if (one := left.pop()) not in repeated:
            repeated.add(one)
            left.extend(calls.get(one, ()))
    return [part._replace(in_loop=part.computation in repeated) for part in found]


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Of one that is split in two (`all-gather-start`, `all-gather-done`), the second half stands for it.
    """
    found = []
    for part in instructions(text):
        if part.kind.endswith("-start"):
            continue
        kind = part.kind.removesuffix("-done")
        if kind in KINDS:
            largest = max(part.shapes, key=lambda shape: _product(shape), default=())
            found.append(Collective(kind, part.bytes, largest, part.in_loop))
    return found


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(n) for n in dims.split(",") if n)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _bytes(kind: str, dims: str) -> int:
    bits = _BITS.get(kind) or int(re.match(r"[a-z]+(\d+)", kind)[1])
    return -(-_product(_shape(dims)) * bits // 8)
