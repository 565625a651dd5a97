"""What an optimised XLA program does, read off its text: bytes moved, operations, and what devices send each other.

The rule for bytes. Every operation of the entry computation, and of a loop's body as often as it runs (once, where the
program does not know how often), reads its operands from memory and writes its results to it, each once; what is inside
a fusion stays in registers. Nothing is counted for what moves nothing (parameters, constants, tuples and their
elements, bitcasts) nor for a library's scratch space. Of an operand that is only sliced or gathered from, what is taken
is counted, scaled or converted before or not; of a result that is an update in place, the update. What has a start and
an end, like a copy in the background, reads at its start and writes at its end. An array that XLA keeps on a TPU's chip
moves nothing. Caches are not considered: this is what a program asks of memory, not what reaches it.

The rule for operations: two for every multiply-add of a matrix product, from its shapes; others are not counted.

The rule for collectives: the bytes of a device's operands, and what it sends if its group passes them round a ring,
which is the least there is. As often as they run, wherever they stand: in a loop, or in a fusion that works meanwhile.
"""

import json
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # others end in their number of bits
MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
ELEMENT_BY_ELEMENT = {"add", "convert", "divide", "multiply", "negate", "subtract"}
SENT = {  # round a ring of n devices, of the bytes of an operand
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
# What XLA has cuBLAS add up in, by the type of the result (GetBlasComputationType in xla/stream_executor/gpu/
# gpu_blas_lt.cc, unless a product asks for an algorithm, and none here does).
SUMMED_IN = {"f16": "f32", "bf16": "f32", "f32": "f32", "f64": "f64"}
LIBRARY_PRODUCT = re.compile(r'custom_call_target="__cublas\$\w*(\$\w+)?"')


class Array(NamedTuple):
    """A type and a shape: `f16[64,256]`."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def moved(self) -> int:
        """Bytes to read or write it."""
        return 0 if self.on_chip else self.bytes

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


class Collective(NamedTuple):
    """What devices send each other, over all the times that it runs."""

    operation: Operation
    kind: str  # of `SENT`
    times: int
    devices: int  # in a group, within which they are sent
    bytes: int  # of a device's operands, each time

    @property
    def sent(self) -> float:
        """Bytes that a device sends, each time."""
        return self.bytes * SENT[self.kind](self.devices)


Computation = dict[str, Operation]


def _arrays(text: str) -> tuple[Array, ...]:
    found = re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?", text)
    return tuple(
        # A layout of a TPU may end in the memory where the array lies: {1,0:T(8,128)S(1)}
        Array(dtype, tuple(map(int, filter(None, shape.split(",")))), ")S(" in layout)
        for dtype, shape, layout in found
    )


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
        count = re.findall(r"(?:replica_count|num_partitions)=(\d+)", text.partition("\n")[0])
        self.devices = math.prod(map(int, count))
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
        return list(self._costs())

    def _costs(self) -> Iterator[Cost]:
        for operation, computation, times in self._run(self.entry, 1):
            if operation.opcode not in MOVES_NOTHING:
                flops, product = self._product(operation, computation)
                yield Cost(operation, times, self._bytes(operation, computation), flops, product)

    @cached_property
    def collectives(self) -> list[Collective]:
        return list(self._collectives())

    def _collectives(self) -> Iterator[Collective]:
        chains = set()
        for outer, computation, times in self._run(self.entry, 1):
            for operation, scope in self._with_inner(outer, computation):
                kind = operation.opcode.removesuffix("-start")
                # A TPU's fusions hold the beginning, the middle and the end of one and the same.
                chain = re.search(r'chain_id="(\d+)"', operation.text)
                if kind not in SENT or (chain and chain[1] in chains):
                    continue
                chains |= {chain[1]} if chain else set()
                if (outer.attribute("calls") or "").startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                size = sum(array.bytes for name in operation.operands for array in scope[name].results)
                yield Collective(operation, kind, times, self._group(operation), size)

    def _group(self, operation: Operation) -> int:
        """How many devices are in a group, of which `replica_groups` tells in one of three notations."""
        groups = operation.text.partition("replica_groups=")[2]
        if found := re.match(r"\{\{([\d,]+)\}", groups):  # {{0,1},{2,3}}
            return found[1].count(",") + 1
        if found := re.match(r"\[\d+,(\d+)\]<=", groups):  # [2,2]<=[4]
            return int(found[1])
        if found := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", groups):  # mesh['x'=2,'y'=2] {'x'}
            sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
            axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", found[2])  # 'x', or a part of it: 'x':(1)2
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        return self.devices

    def _run(self, name: str, times: int) -> Iterator[tuple[Operation, Computation, int]]:
        """What is run one after another: each operation, where it stands, and how often."""
        computation = self.computations[name]
        for operation in computation.values():
            if operation.opcode == "while":
                yield from self._run(operation.attribute("body"), times * self._trips(operation))
            elif operation.opcode == "call":
                yield from self._run(operation.attribute("to_apply"), times)
            else:
                yield operation, computation, times

    def _trips(self, loop: Operation) -> int:
        """How often a loop runs. XLA's TPU compiler does not note it: there it is what the loop counts up to."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition") or "", {})
        compared = [name for operation in condition.values() if operation.root for name in operation.operands]
        constants = (re.search(r"\bconstant\((\d+)\)", condition[name].text) for name in compared if name in condition)
        return next((int(constant[1]) for constant in constants if constant), 1)

    def _with_inner(self, operation: Operation, computation: Computation) -> Iterator[tuple[Operation, Computation]]:
        """The operation, and those that it is fused from, with where they stand."""
        yield operation, computation
        inner = self.computations.get(operation.attribute("calls") or "", {})
        for one in inner.values():
            yield from self._with_inner(one, inner)

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
        reads, writes = not operation.opcode.endswith("-done"), not operation.opcode.endswith("-start")
        return reads * sum(read.values()) + writes * self._written(operation, inner)

    def _read(self, value: Operation, inner: Computation) -> int:
        """Bytes that the operations of `inner` read of `value`."""
        total, whole = 0, sum(array.moved for array in value.results)
        for user in inner.values():
            if value.name not in user.operands:
                continue
            if user.opcode == "bitcast":
                total += self._read(user, inner)
            elif (
                user.opcode in ELEMENT_BY_ELEMENT and not user.root and user.results[0].shape == value.results[0].shape
            ):
                total += whole * self._read(user, inner) // max(1, user.results[0].moved)
            elif user.opcode in ("slice", "dynamic-slice", "gather") and user.operands[0] == value.name:
                total += user.results[0].moved
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
                sum(a.moved for a in (inner[o.operands[1]] if o.opcode == "dynamic-update-slice" else o).results)
                for o in roots
            )
        results = operation.results[:1] if operation.is_library_product else operation.results  # then scratch space
        return sum(array.moved for array in results)

    def _product(self, operation: Operation, computation: Computation):
        """Operations and types of the matrix products in `operation`, a library's call or a fusion around one."""
        flops, types = 0, None
        for dot, scope in self._with_inner(operation, computation):
            if dot.opcode in ("dot", "convolution") or dot.is_library_product:
                left, right = (scope[name].results[0] for name in dot.operands[:2])
                count = _convolved if dot.opcode == "convolution" else _multiplied
                flops += 2 * count(dot, left, right)
                types = (left.dtype, right.dtype, dot.results[0].dtype)
        return flops, types


def _multiplied(dot: Operation, left: Array, right: Array) -> int:
    """Multiply-adds of a matrix product."""
    if dot.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)[1].split(",")
    else:
        config = json.loads(re.search(r'"dot_dimension_numbers":(\{.*?\})', dot.text)[1])
        contracted = config["lhs_contracting_dimensions"]
    return math.prod(dot.results[0].shape) * math.prod(left.shape[int(i)] for i in contracted)


def _convolved(convolution: Operation, left: Array, right: Array) -> int:
    """Multiply-adds of a convolution, as which a TPU's programs have matrix products: those of a batch are a window
    that is spread so far that it meets one element at a time."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.text)
    lefts, rights, outs = (
        dict(zip(names, array.shape, strict=True))
        for names, array in zip(labels.groups(), (left, right, convolution.results[0]), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", convolution.text.partition("window={")[2].partition("}")[0]))
    fields = {name: values.split("x") for name, values in window.items()}
    total = outs["b"] * outs["f"] * rights["i"]
    for i, axis in enumerate(sorted(filter(str.isdigit, outs))):
        factors = ("stride", "rhs_dilate", "lhs_dilate")
        stride, dilation, spread = (int(fields[name][i]) if name in fields else 1 for name in factors)
        pad = int(fields["pad"][i].split("_")[0]) if "pad" in fields else 0
        places = (out * stride + k * dilation - pad for out in range(outs[axis]) for k in range(rights[axis]))
        total *= sum(0 <= place <= (lefts[axis] - 1) * spread and place % spread == 0 for place in places)
    return total
