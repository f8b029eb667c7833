"""Reads what XLA has compiled: which collectives a program holds, how large they are, and what memory it takes."""

from __future__ import annotations

import re
import typing

import jax

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "ragged-all-to-all")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(mesh\[([^\]]*)\] *\{([^}]*)\}|\[\d+,(\d+)\]|\{\{([\d,]*)\}|\{\})")


class Memory(typing.Protocol):
    """Bytes that a compiled program takes on each device."""

    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int  # of outputs that take the place of an argument
    temp_size_in_bytes: int


def memory(program: jax.stages.Compiled) -> Memory:
    """What a program takes. CPUs, GPUs and TPUs all tell.

    Raises:
      RuntimeError: another backend does not.
    """
    found = program.memory_analysis()
    if found is None:
        raise RuntimeError("this backend does not tell what memory a program takes")
    return found


def text(program: jax.stages.Compiled) -> str:
    """The HLO of a program.

    Raises:
      RuntimeError: the backend does not give it.
    """
    found = program.as_text()
    if found is None:
        raise RuntimeError("this backend does not give the text of a program")
    return found


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
            called = _called(rest)
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


def payload(text: str) -> dict[str, int]:
    """Bytes that collectives move on each device in one call of a compiled program, by kind.

    Of each the larger of what goes in and what comes out counts, as often as it runs: a loop's trips are told by XLA where it knows
    them, and are otherwise taken as one. Collectives within one device alone move nothing.
    """
    found = instructions(text)
    calls: dict[str, list[tuple[str, int]]] = {}
    for part in found:
        trips = int(known[1]) if part.kind == "while" and (known := _TRIPS.search(part.line)) else 1
        calls.setdefault(part.computation, []).extend((name, trips) for name in _called(part.line))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    runs: dict[str, int] = {}

    def visit(computation: str, times: int):
        runs[computation] = runs.get(computation, 0) + times
        for name, trips in calls.get(computation, ()):
            visit(name, times * trips)

    visit(entry[1] if entry else "", 1)
    groups = {part.name: _group(part.line) for part in found}
    total: dict[str, int] = {}
    for part in found:
        kind = part.kind.removesuffix("-done")
        if kind not in KINDS or part.computation not in runs:
            continue
        # The second half of a collective says nothing of its group; the first one, its operand, does.
        source = re.search(r"-done\(.*?%?([\w.\-]+)\)", part.line)
        group = groups[source[1]] if source else groups[part.name]
        if group != 1:
            size = part.bytes * (max(group, 1) if kind == "reduce-scatter" else 1)
            total[kind] = total.get(kind, 0) + size * runs[part.computation]
    return total


def _called(line: str) -> list[str]:
    """Names of the computations that an instruction calls."""
    return [name.strip("{} %") for group in _CALLED.findall(line) for name in group.split(",")]


def _group(line: str) -> int:
    """Devices that take part in a collective together; 0: all of them, or none is told."""
    found = _GROUPS.search(line)
    if found is None:
        return 0
    _, axes, named, size, listed = found.groups()
    if axes is not None:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
        return _product(tuple(int(sizes[name]) for name in re.findall(r"'([^']+)'", named)))
    return int(size) if size is not None else listed.count(",") + 1 if listed else 0


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(n) for n in dims.split(",") if n)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _bytes(kind: str, dims: str) -> int:
    bits = _BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
    return -(-_product(_shape(dims)) * bits // 8)
