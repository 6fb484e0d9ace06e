"""The way from Python into the kernels: a function of addresses alone, which is called without numba."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, type-arg"
# numba infers the types of compiled functions; annotations would only repeat them.

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from onnx_tailor.quant.compiled import kernel
from onnx_tailor.quant.kernels import quantize_tile
from onnx_tailor.quant.lanes import WIDTH
from onnx_tailor.quant.search_plan import Plan

_BYTES, _WORDS = types.CPointer(types.uint8), types.CPointer(types.uint32)
_INTEGERS, _FLOATS, _DOUBLES = types.CPointer(types.int64), types.CPointer(types.float32), types.CPointer(types.float64)


def _array_at(context, pointer, shape):
    """Return the numbers at an address as an array in row-major order; numba's own `carray` needs its runtime."""
    kind = types.Array(pointer.dtype, len(shape), "C")

    def code(context, builder, sig, values):
        array = context.make_array(kind)(context, builder)
        dims = cgutils.unpack_tuple(builder, values[1])
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        strides = [size]
        for dim in reversed(dims[1:]):
            strides.insert(0, builder.mul(strides[0], dim))
        populate_array(array, values[0], dims, strides, size, None)
        return array._getvalue()

    return kind(pointer, shape), code


_array: Any = intrinsic(_array_at)


_ADDRESSES = (
    _BYTES,
    _BYTES,
    _INTEGERS,
    _DOUBLES,
    _WORDS,
    _FLOATS,
    _BYTES,
    _FLOATS,
    _DOUBLES,
    _FLOATS,
    _WORDS,
    _FLOATS,
    _INTEGERS,
)


def _quantize_tile(
    source, importance, integers, steps, codes, scales, points, float_points, sums, floats, words, results, spots
):
    """Call `quantize_tile` with what lies at the addresses. Return whether every weight is finite, as 0 or 1.

    `integers` are bytes of the source, its kind, whether it lies by columns, bytes of the importance, bits, block size,
    whether it is symmetric, whether its zero points are floats, kind of the scales, rows, columns, and those of the
    plan; `steps` are the plan's others.
    """
    at, step = _array(integers, (16,)), _array(steps, (3,))
    width, block, rows, k = at[4], at[5], at[9], at[10]
    blocks, words_each = -(-k // block), block * width // 32
    return np.int64(
        quantize_tile(
            _array(source, (at[0],)),
            at[1],
            at[2] != 0,
            _array(importance, (at[3],)),
            width,
            block,
            at[6] != 0,
            Plan(step[0], step[1], at[11], at[12], at[13], step[2], at[14], at[15]),
            at[8],
            (rows, k),
            _array(codes, (rows * blocks * words_each,)),
            _array(scales, (rows * blocks,)),
            _array(points, (0 if at[6] or at[7] else rows * -(-blocks * width // 8),)),
            _array(float_points, (rows * blocks if at[7] else 0,)),
            _array(sums, (2,)),
            (
                _array(floats, (2, 2, block * WIDTH)),
                _array(words, (words_each * WIDTH,)),
                _array(results, (5 * WIDTH,)),
                _array(spots, (2, 5, WIDTH)),
            ),
        )
    )


def assembly() -> tuple[str, str]:
    """Compile the entry. Return its module in LLVM's own language, and its symbol there.

    It is a function of C: int32 status (place of the result, place of what went wrong, addresses).
    """
    function = kernel(_quantize_tile)
    function.compile(_ADDRESSES)
    return function.inspect_llvm(_ADDRESSES), function.overloads[_ADDRESSES].fndesc.llvm_func_name
