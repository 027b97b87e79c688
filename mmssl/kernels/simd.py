"""A vector register as a numba type: `load`, `store`, `fma` and a few more, compiled to the instructions of the machine
at hand.

numba's loops are vectorised only as far as LLVM's heuristics see through them; a register-tiled kernel has to say which
values stay in registers. A `Vector` here is LLVM's `<lanes x float>`: eight floats (one AVX register, two of NEON),
sixteen where the processor has AVX-512. Every function below is inlined to one or a few instructions.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

FLOAT, INT = ir.FloatType(), ir.IntType(32)
SCORES = 16  # lanes of the vector that `row_sums` returns: two rows of eight

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
LANES = 16 if llvm.get_host_cpu_features().get("avx512f", False) else 8


class Vector(types.Type):
    """`lanes` float32 values in one register."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(FLOAT, vector.lanes))


def _every_lane(kind, value):
    return ir.Constant(kind, [value] * kind.count)


def _call(builder, name: str, *values):
    """Call an LLVM function that is overloaded on its vector type, such as llvm.fma.v8f32."""
    kind = values[0].type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(values)), f"llvm.{name}.v{kind.count}f32"
    )
    return builder.call(function, values)


def _address(context, builder, array_type, array, row, column, lanes=1):
    """The place of the first of `lanes` floats, which may run on into the next row."""
    view = context.make_array(array_type)(context, builder, array)
    rows, width = cgutils.unpack_tuple(builder, view.shape)
    place = builder.add(builder.mul(row, width), column)
    if context.enable_boundscheck:  # NUMBA_BOUNDSCHECK=1, as for every other array access
        for index, size in ((row, rows), (column, width), (builder.add(place, place.type(lanes - 1)), view.nitems)):
            cgutils.do_boundscheck(context, builder, index, size)
    return builder.gep(view.data, [place])


def _matrix(array) -> bool:
    return isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C" and array.dtype == types.float32


def _loader(lanes: int):
    def load(typingctx, array, row, column):
        if not _matrix(array):
            return None

        def emit(context, builder, signature, arguments):
            pointer = _address(context, builder, signature.args[0], *arguments, lanes)
            pointer = builder.bitcast(pointer, ir.VectorType(FLOAT, lanes).as_pointer())
            return builder.load(pointer, align=4)

        return Vector(lanes)(array, types.intp, types.intp), emit

    return load


load = intrinsic(_loader(LANES))  # load(matrix, row, column): `LANES` floats of a row, from `column` on
load_scores = intrinsic(_loader(SCORES))  # the same, `SCORES` floats


@intrinsic
def store(typingctx, array, row, column, vector):
    """Write a vector into a row of a float32 matrix, from `column` on."""
    if not (_matrix(array) and isinstance(vector, Vector)):
        return None

    def emit(context, builder, signature, arguments):
        *place, value = arguments
        pointer = _address(context, builder, signature.args[0], *place, vector.lanes)
        builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), emit


@intrinsic
def prefetch(typingctx, array, row, column):
    """Ask for one cache line of a row ahead of its use; a hint, without effect on any value."""
    if not _matrix(array):
        return None

    def emit(context, builder, signature, arguments):
        byte_pointer = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(_address(context, builder, signature.args[0], *arguments), byte_pointer)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte_pointer, INT, INT, INT]), "llvm.prefetch.p0i8"
        )
        builder.call(function, [pointer, INT(1), INT(3), INT(1)])  # to write, keep in every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), emit


def _splatter(lanes: int):
    def splat(typingctx, value):
        def emit(context, builder, signature, arguments):
            kind = ir.VectorType(FLOAT, lanes)
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), arguments[0], INT(0))
            return builder.shuffle_vector(first, first, _every_lane(ir.VectorType(INT, lanes), 0))

        return Vector(lanes)(types.float32), emit

    return splat


splat = intrinsic(_splatter(LANES))  # one float in every lane
splat_scores = intrinsic(_splatter(SCORES))


def _elementwise(emit_values, arity: int):
    """An intrinsic of `arity` equal vectors, from a function that emits it."""

    def check(vectors):
        return all(isinstance(vector, Vector) and vector == vectors[0] for vector in vectors)

    def build(vectors):
        if not check(vectors):
            return None
        return vectors[0](*vectors), lambda context, builder, signature, arguments: emit_values(builder, *arguments)

    if arity == 1:
        return intrinsic(lambda typingctx, a: build((a,)))
    if arity == 2:
        return intrinsic(lambda typingctx, a, b: build((a, b)))
    return intrinsic(lambda typingctx, a, b, c: build((a, b, c)))


add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
subtract = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
multiply = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
divide = _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)
fma = _elementwise(lambda builder, a, b, c: _call(builder, "fma", a, b, c), 3)  # a * b + c, rounded once


def _emit_exp(builder, x):
    """e^x to 2 units in the last place: 2^(n + r) with n whole, r in [-1/2, 1/2] and Taylor's polynomial for 2^r."""
    kind, whole = x.type, ir.VectorType(INT, x.type.count)
    for end, beyond in ((-80.0, "<"), (80.0, ">")):  # compare and select: a NaN stays one
        end = _every_lane(kind, end)
        x = builder.select(builder.fcmp_ordered(beyond, x, end), end, x)
    x = builder.fmul(x, _every_lane(kind, 1.4426950408889634))  # log2(e)
    n = _call(builder, "rint", x)
    r = builder.fsub(x, n)
    power = _every_lane(kind, 1.5403530393381608e-4)  # ln(2)^6 / 6!
    for coefficient in (1.3333558146428443e-3, 9.618129107628477e-3, 0.055504108664821576, 0.2402265069591007,
                        0.6931471805599453, 1.0):  # fmt: skip
        power = _call(builder, "fma", power, r, _every_lane(kind, coefficient))
    exponent = builder.shl(builder.add(builder.fptosi(n, whole), _every_lane(whole, 127)), _every_lane(whole, 23))
    return builder.fmul(power, builder.bitcast(exponent, kind))


def _emit_exponent(builder, x):
    whole = ir.VectorType(INT, x.type.count)
    bits = builder.lshr(builder.bitcast(x, whole), _every_lane(whole, 23))
    return builder.sitofp(builder.sub(bits, _every_lane(whole, 127)), x.type)


def _emit_mantissa(builder, x):
    whole = ir.VectorType(INT, x.type.count)
    bits = builder.and_(builder.bitcast(x, whole), _every_lane(whole, 0x007FFFFF))
    return builder.bitcast(builder.or_(bits, _every_lane(whole, 0x3F800000)), x.type)


exp = _elementwise(_emit_exp, 1)  # arguments beyond +-80 count as +-80
exponent = _elementwise(_emit_exponent, 1)  # x = mantissa(x) * 2 ** exponent(x), for positive normal x
mantissa = _elementwise(_emit_mantissa, 1)  # in [1, 2)


@intrinsic
def row_sums(typingctx, a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5):
    """The sums over the lanes of twelve vectors as one `SCORES`-wide vector: those of a0 to a5 in lanes 0 to 5, those
    of b0 to b5 in lanes 8 to 13; the others are zero."""
    vectors = (a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5)
    if not all(isinstance(vector, Vector) and vector == a0 for vector in vectors):
        return None

    def emit(context, builder, signature, arguments):
        def pick(u, v, lanes):
            return builder.shuffle_vector(u, v, ir.Constant(ir.VectorType(INT, SCORES), lanes))

        def fold(u, v, distance):
            """Lanes whose number has the bit `distance`: v, added to the lanes that far below; the others: u, added to
            the lanes that far above. So half as many sums are left to do, of twice as many vectors."""
            upper = [bool(lane & distance) for lane in range(SCORES)]
            stay = [lane + SCORES * up for lane, up in enumerate(upper)]
            move = [lane - distance + SCORES if up else lane + distance for lane, up in enumerate(upper)]
            return builder.fadd(pick(u, v, stay), pick(u, v, move))

        def beside(u, v):  # u in the lower half, v in the upper
            return fold(u, v, 8) if u.type.count == SCORES else pick(u, v, list(range(SCORES)))

        r0, r1, r2, r3, r4, r5 = (beside(a, b) for a, b in zip(arguments[:6], arguments[6:], strict=True))
        nothing = ir.Constant(r0.type, [0.0] * SCORES)
        even = fold(fold(r0, r4, 4), fold(r2, nothing, 4), 2)
        odd = fold(fold(r1, r5, 4), fold(r3, nothing, 4), 2)
        return fold(even, odd, 1)

    return Vector(SCORES)(*vectors), emit
