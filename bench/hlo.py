"""What an optimised XLA program does, read off its text: bytes moved, operations, and the time they cannot beat.

The rule for bytes. Every operation of the entry computation, and of a loop's body as often as it runs (once, where the
program does not know how often), reads its operands from memory and writes its results to it, each once; what is inside
a fusion stays in registers. Nothing is counted for what moves nothing (parameters, constants, tuples and their
elements, bitcasts) nor for a library's scratch space. Of an operand that is only sliced or gathered from, what is taken
is counted; of a result that is an update in place, the update. Caches are not considered: this is what a program asks
of memory, not what reaches it.

The rule for operations: two for every multiply-add of a matrix product, from its shapes; others are not counted.
"""

import json
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # others end in their number of bits
MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
# What XLA has cuBLAS add up in, by the type of the result (GetBlasComputationType in xla/stream_executor/gpu/
# gpu_blas_lt.cc, unless a product asks for an algorithm, and none here does).
SUMMED_IN = {"f16": "f32", "bf16": "f32", "f32": "f32", "f64": "f64"}
LIBRARY_PRODUCT = re.compile(r'custom_call_target="__cublas\$\w*(\$\w+)?"')


class Array(NamedTuple):
    """A type and a shape: `f16[64,256]`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = BITS[self.dtype] if self.dtype in BITS else int(re.sub(r"^[a-z]+(\d+).*", r"\1", self.dtype))
        return math.prod(self.shape) * bits // 8


class Operation(NamedTuple):
    """A line of the program."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str  # the whole line
    root: bool

    def attribute(self, name: str) -> str | None:
        """The name that follows `name=` in the line: `calls=%fused_add`."""
        found = re.search(rf"\b{name}=%([\w.-]+)", self.text)
        return found and found[1]

    @property
    def source(self) -> str:
        """What in the model it comes from, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else self.opcode

    @property
    def is_library_product(self) -> bool:
        return self.opcode == "custom-call" and bool(LIBRARY_PRODUCT.search(self.text))


class Cost(NamedTuple):
    """Of one operation of the program, over all the times that it runs."""

    operation: Operation
    times: int
    bytes: int  # each time
    flops: int  # each time
    product: tuple[str, str, str] | None  # the types of both operands and of the result, if it is a matrix product


Computation = dict[str, Operation]


def _arrays(text: str) -> tuple[Array, ...]:
    found = re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", text)
    return tuple(Array(dtype, tuple(map(int, shape.split(","))) if shape else ()) for dtype, shape in found)


def _operation(line: str) -> Operation | None:
    found = re.match(r"\s+(ROOT )?%([\w.-]+) = (.*)", re.sub(r"/\*.*?\*/", "", line))
    if not found:
        return None
    rest = found[3]
    # The type ends at the first space outside parentheses; the operands are in the parentheses after the opcode.
    depth = 0
    for end, letter in enumerate(rest):  # noqa: B007
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            break
    opcode, _, arguments = rest[end + 1 :].partition("(")
    operands = tuple(re.findall(r"%([\w.-]+)", arguments.partition(")")[0]))
    return Operation(found[2], opcode, _arrays(rest[:end]), operands, line, bool(found[1]))


class Program:
    """The text of `jax.stages.Compiled`, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
            if header:
                computation = self.computations[header[2]] = {}
                if header[1]:
                    self.entry = header[2]
            elif operation := _operation(line) if self.computations else None:
                computation[operation.name] = operation

    @cached_property
    def costs(self) -> list[Cost]:
        return list(self._costs(self.entry, 1))

    def _costs(self, name: str, times: int) -> Iterator[Cost]:
        computation = self.computations[name]
        for operation in computation.values():
            if operation.opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', operation.text)
                yield from self._costs(operation.attribute("body"), times * (int(trips[1]) if trips else 1))
            elif operation.opcode == "call":
                yield from self._costs(operation.attribute("to_apply"), times)
            elif operation.opcode not in MOVES_NOTHING:
                flops, product = self._product(operation, computation)
                yield Cost(operation, times, self._bytes(operation, computation), flops, product)

    def _bytes(self, operation: Operation, computation: Computation) -> int:
        inner = self.computations.get(operation.attribute("calls") or "")
        operands = [computation[name].results for name in operation.operands]
        if inner is None:
            inner = {
                f"{i}": Operation(f"{i}", "parameter", r, (), f"parameter({i})", False) for i, r in enumerate(operands)
            }
            inner[operation.name] = operation._replace(operands=tuple(inner), root=True)
        parameters = {
            int(re.search(r"parameter\((\d+)\)", o.text)[1]): o for o in inner.values() if o.opcode == "parameter"
        }
        read = {name: self._read(parameters[i], inner) for i, name in enumerate(operation.operands)}
        return sum(read.values()) + self._written(operation, inner)

    def _read(self, value: Operation, inner: Computation) -> int:
        """Bytes that the operations of `inner` read of `value`."""
        total, whole = 0, sum(array.bytes for array in value.results)
        for user in inner.values():
            if value.name not in user.operands:
                continue
            if user.opcode == "bitcast":
                total += self._read(user, inner)
            elif user.opcode in ("slice", "dynamic-slice", "gather") and user.operands[0] == value.name:
                total += user.results[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue  # what is not updated stays where it is
            else:
                return whole
        return min(total, whole)

    def _written(self, operation: Operation, inner: Computation) -> int:
        root = next(o for o in inner.values() if o.root)
        roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if any(o.opcode == "dynamic-update-slice" for o in roots):
            return sum(
                sum(a.bytes for a in (inner[o.operands[1]] if o.opcode == "dynamic-update-slice" else o).results)
                for o in roots
            )
        results = operation.results[:1] if operation.is_library_product else operation.results  # then scratch space
        return sum(array.bytes for array in results)

    def _product(self, operation: Operation, computation: Computation):
        """Operations and types of the matrix products in `operation`, a library's call or a fusion around one."""
        inner = self.computations.get(operation.attribute("calls") or "", {})
        dots = [(o, inner) for o in inner.values() if o.opcode == "dot"]
        if operation.opcode == "dot" or operation.is_library_product:
            dots.append((operation, computation))
        flops, types = 0, None
        for dot, scope in dots:
            left, right = (scope[name].results[0] for name in dot.operands[:2])
            flops += 2 * math.prod(dot.results[0].shape) * math.prod(left.shape[i] for i in _contracted(dot))
            types = (left.dtype, right.dtype, dot.results[0].dtype)
        return flops, types


def _contracted(dot: Operation) -> list[int]:
    if dot.opcode == "dot":
        return [int(i) for i in re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)[1].split(",")]
    config = json.loads(re.search(r'"dot_dimension_numbers":(\{.*?\})', dot.text)[1])
    return [int(i) for i in config["lhs_contracting_dimensions"]]
