"""Vectors of WIDTH numbers as numba types: `+`, `*` or `<` on them become one vector instruction each.

Kernels read like code for one block and work on WIDTH blocks at a time, each in a lane of its own. What a lane holds
never depends on its neighbours, and no sum is reordered, so results are the same bytes wherever a block lies. LLVM
splits the vectors where a processor's are shorter.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, type-arg"
# numba and llvmlite ship no types.

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from onnx_tailor.quant import workspace

WIDTH = workspace.WIDTH

_ELEMENTS = {"float32": ir.FloatType(), "uint32": ir.IntType(32), "mask": ir.IntType(1)}
_INDEX = ir.VectorType(ir.IntType(32), WIDTH)


class Lanes(types.Type):
    """The type of WIDTH numbers or truth values."""

    def __init__(self, element: str) -> None:
        """Name the type by its elements."""
        super().__init__(name=f"{element}x{WIDTH}")
        self.vector = ir.VectorType(_ELEMENTS[element], WIDTH)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, kind.vector)


_F, _U, _M = Lanes("float32"), Lanes("uint32"), Lanes("mask")
_Builder = ir.IRBuilder


def _intrinsic(function) -> Any:
    """Make numba's intrinsic function; what it takes in compiled code is not what Python's types say."""
    return intrinsic(function)


def _operator(symbol, *cases) -> None:
    """Give `symbol` a meaning on lanes: each case is (result, arguments, how to emit it)."""
    signatures = [signature(result, *arguments) for result, arguments, _ in cases]
    infer_global(symbol)(type(symbol.__name__, (ConcreteTemplate,), {"cases": signatures}))
    for _, arguments, emit in cases:

        def lower(context, builder, sig, values, emit=emit):
            return emit(builder, *values)

        lower_builtin(symbol, *arguments)(lower)


def _compare(symbol):
    def floats(builder, a, b):
        return builder.fcmp_ordered(symbol, a, b)

    def integers(builder, a, b):
        return builder.icmp_unsigned(symbol, a, b)

    return (_M, (_F, _F), floats), (_M, (_U, _U), integers)


_operator(operator.add, (_F, (_F, _F), _Builder.fadd), (_U, (_U, _U), _Builder.add))
_operator(operator.sub, (_F, (_F, _F), _Builder.fsub), (_U, (_U, _U), _Builder.sub))
_operator(operator.mul, (_F, (_F, _F), _Builder.fmul))
_operator(operator.truediv, (_F, (_F, _F), _Builder.fdiv))
_operator(operator.neg, (_F, (_F,), _Builder.fneg))
_operator(operator.and_, (_U, (_U, _U), _Builder.and_), (_M, (_M, _M), _Builder.and_))
_operator(operator.or_, (_U, (_U, _U), _Builder.or_), (_M, (_M, _M), _Builder.or_))
_operator(operator.lshift, (_U, (_U, _U), _Builder.shl))
_operator(operator.rshift, (_U, (_U, _U), _Builder.lshr))
_operator(operator.lt, *_compare("<"))
_operator(operator.gt, *_compare(">"))
_operator(operator.ge, *_compare(">="))
_operator(operator.eq, *_compare("=="))
_operator(operator.invert, (_M, (_M,), _Builder.not_))


def _function(*cases):
    """Return a function on lanes: the first case (result, arguments, how to emit it) whose arguments fit."""

    def choose(arguments):
        for result, expected, emit in cases:
            if arguments == expected:

                def code(context, builder, sig, values, emit=emit):
                    return emit(builder, *values)

                return signature(result, *arguments), code
        return None

    def one(context, a):
        return choose((a,))

    def two(context, a, b):
        return choose((a, b))

    def three(context, a, b, c):
        return choose((a, b, c))

    return _intrinsic((one, two, three)[len(cases[0][1]) - 1])


def _llvm(name):
    """Emit LLVM's intrinsic function `name`, as in llvm.fma."""

    def emit(builder, *values):
        kind = ir.FunctionType(values[0].type, [value.type for value in values])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
        return builder.call(function, values)

    return emit


def _choose(compare, symbol):
    """Emit the one of two values that compares; the second where either is NaN, as x86's own instructions do."""

    def emit(builder, a, b):
        return builder.select(getattr(builder, compare)(symbol, a, b), a, b)

    return emit


def _choose_integer(symbol):
    """Emit the one of two values whose bits compare as signed integers."""

    def emit(builder, a, b):
        first, second = builder.bitcast(a, _U.vector), builder.bitcast(b, _U.vector)
        chosen = builder.select(builder.icmp_signed(symbol, first, second), first, second)
        return builder.bitcast(chosen, _F.vector)

    return emit


def _at_least_zero(builder, value):
    return _choose_integer(">")(builder, value, ir.Constant(value.type, None))


def _splat(vector):
    def emit(builder, value):
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, value, ir.IntType(32)(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(_INDEX, [0] * WIDTH))

    return emit


def _any(builder, mask):
    whole = ir.IntType(WIDTH)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, whole), whole(0))


splat = _function((_F, (types.float32,), _splat(_F.vector)), (_U, (types.uint32,), _splat(_U.vector)))
"""The same number in every lane."""
fma = _function((_F, (_F, _F, _F), _llvm("fma")))
"""a * b + c, rounded once; asked for by name, so that every processor rounds alike."""
rint = _function((_F, (_F,), _llvm("rint")))
"""The nearest integer, the even one of two."""
sqrt = _function((_F, (_F,), _llvm("sqrt")))
fabs = _function((_F, (_F,), _llvm("fabs")))
lesser = _function((_F, (_F, _F), _choose("fcmp_ordered", "<")))
greater = _function((_F, (_F, _F), _choose("fcmp_ordered", ">")), (_U, (_U, _U), _choose("icmp_unsigned", ">")))
lesser_size = _function((_F, (_F, _F), _choose_integer("<")))
"""`lesser` of numbers from zero on, by another unit of the processor; a NaN is larger than infinity."""
at_least_zero = _function((_F, (_F,), _at_least_zero))
"""`greater` of a number and zero; the sign of a NaN decides."""
where = _function((_F, (_M, _F, _F), _Builder.select), (_U, (_M, _U, _U), _Builder.select))
"""Lane by lane: the second argument where the mask is set, else the third."""
bits = _function((_U, (_F,), lambda builder, value: builder.bitcast(value, _U.vector)))
"""The float's bits as an integer."""
from_bits = _function((_F, (_U,), lambda builder, value: builder.bitcast(value, _F.vector)))
to_uint = _function((_U, (_F,), lambda builder, value: builder.fptoui(value, _U.vector)))
any_lane = _function((types.boolean, (_M,), _any))


def _pointer(context, builder, kind, array, index, memory):
    """Return the address of `array[index]` as that of WIDTH numbers."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), memory.as_pointer())


def _masked_load(builder, pointer, memory, count):
    """Load the first `count` numbers; the others are zero and not touched in memory."""
    lane = ir.Constant(_INDEX, list(range(WIDTH)))
    mask = builder.icmp_signed("<", lane, _splat(_INDEX)(builder, builder.trunc(count, ir.IntType(32))))
    suffix = f"v{WIDTH}{'f32' if isinstance(memory.element, ir.FloatType) else f'i{memory.element.width}'}"
    kind = ir.FunctionType(memory, [pointer.type, ir.IntType(32), mask.type, memory])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{suffix}.p0{suffix}")
    return builder.call(function, [pointer, ir.IntType(32)(1), mask, ir.Constant(memory, None)])


def _loader(lanes, memory, widen=None):
    """Return `load(array, index)` and `load(array, index, count)` of numbers that are `memory` where they lie."""

    def emit(context, builder, sig, values):
        pointer = _pointer(context, builder, sig.args[0], values[0], values[1], memory)
        if len(values) == 2:
            loaded = builder.load(pointer, align=1)
        else:
            loaded = _masked_load(builder, pointer, memory, values[2])
        return widen(builder, loaded) if widen else loaded

    def whole(context, array, index):
        return signature(lanes, array, types.intp), emit

    def part(context, array, index, count):
        return signature(lanes, array, types.intp, types.intp), emit

    return _intrinsic(whole), _intrinsic(part)


load, load_part = _loader(_F, _F.vector)
"""WIDTH float32 from `array[index]` on, at any alignment; of `_part` only `count`, zero in the other lanes."""
load16, load16_part = _loader(_U, ir.VectorType(ir.IntType(16), WIDTH), lambda b, value: b.zext(value, _U.vector))
"""WIDTH uint16 from `array[index]` on, as uint32."""


@_intrinsic
def store(context, array, index, value):
    """Write the lanes to `array[index]` and on."""

    def code(context, builder, sig, values):
        pointer = _pointer(context, builder, sig.args[0], values[0], values[1], sig.args[2].vector)
        builder.store(values[2], pointer, align=4)

    return signature(types.void, array, types.intp, value), code


@_intrinsic
def transpose(context, array, index):
    """Transpose in place the WIDTH x WIDTH numbers from `array[index]` on.

    Each round swaps, in pairs of rows `step` apart, the upper right with the lower left square of `step` columns.
    """

    def code(context, builder, sig, values):
        places = [builder.add(values[1], values[1].type(row * WIDTH)) for row in range(WIDTH)]
        pointers = [_pointer(context, builder, sig.args[0], values[0], place, _F.vector) for place in places]
        rows = [builder.load(pointer, align=4) for pointer in pointers]
        step = WIDTH // 2
        while step:
            upper = ir.Constant(_INDEX, [i + (WIDTH - step) * bool(i & step) for i in range(WIDTH)])
            lower = ir.Constant(_INDEX, [i + step if not i & step else i + WIDTH for i in range(WIDTH)])
            for row in range(WIDTH):
                if not row & step:
                    pair = rows[row], rows[row + step]
                    rows[row] = builder.shuffle_vector(*pair, upper)
                    rows[row + step] = builder.shuffle_vector(*pair, lower)
            step //= 2
        for row, pointer in zip(rows, pointers, strict=True):
            builder.store(row, pointer, align=4)

    return signature(types.void, array, types.intp), code
