"""What is proven about numbers: casts, tables and sums.

Claims about one argument at a time hold for all arguments; those about rows are bounded to the
first ones after reset, and no core remembers more of the past than the row it works on. Widths are
small, since a product of wide numbers is what solvers do worst, while the expression is the same at
every width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from amaranth.hdl import Const, Value
from amaranth.lib import data, wiring

import fixedpoint
import hdl.parts.requantize
from fixedpoint import QFormat
from hdl.cores.engine import Engine
from hdl.cores.softmax import SoftmaxNumerators
from hdl.parts.exponential import Exponential
from hdl.parts.reciprocal import Reciprocal, ReciprocalSquareRoot
from hdl.parts.requantize import Requantize
from hdl.parts.row_statistics import RowStatistics

from .cores import tiny_norm, tiny_rms_norm, tiny_softmax
from .functional import (
    Condition,
    Relation,
    RequantizeDefinition,
    Transaction,
    exponential_bound,
    reciprocal_bound,
    requantize_definition,
    root_bound,
)
from .proof import Proof
from .seeded_bugs import build_patched
from .sums import DenominatorsAreExact, PairsOfProducts, StatisticsNeverOverflow, SumsAreExact, TreesNeverOverflow

REQUANTIZE = (12, QFormat(6, 0), -1, 6)  # bits, target, lowest and highest shift
TERMS = 2  # words of an engine's sum


def arithmetic_proofs() -> list[Proof]:
    """Return the proofs about numbers."""
    return [*tables_and_casts(), *products(), *sums()]


def with_wrong_entry(function: Any, index: int = 1) -> Any:
    """Return a function whose table has one entry too small by a little less than half."""
    table = function.table.copy()
    table[index] -= (function.table.max() >> 1) - 1
    wrong = type(function)(**{name: getattr(function, name) for name in function.__dataclass_fields__})
    wrong.__dict__["table"] = table  # in place of what the cached property would compute
    return wrong


def positive(argument: Value) -> Value:
    """Say that an argument is not zero."""
    return argument != 0


def within_shifts(payload: data.View) -> Value:
    """Say that a shift is one of those that the core is made for."""
    *_, lowest, highest = REQUANTIZE
    return (payload.shift[0] >= lowest) & (payload.shift[0] <= highest)


def wrap(value: Value, number_format: QFormat) -> Value:
    """Return the low bits of a number, what a cast without saturation would give."""
    return value[: number_format.bits].as_signed()


def tables_and_casts() -> list[Proof]:
    """Requantize equals its definition; tables stay within their bounds for every argument."""
    exponential = fixedpoint.Exponential(4, 3, 5)
    reciprocal, root = fixedpoint.Reciprocal(4, 8), fixedpoint.ReciprocalSquareRoot(5, 8)
    bounded = (
        (
            "exponential",
            lambda function: Exponential(function, 7),
            exponential,
            exponential_bound(exponential, 7),
            None,
        ),
        ("reciprocal", lambda function: Reciprocal(function, 8), reciprocal, reciprocal_bound(reciprocal), positive),
        (
            "reciprocal-square-root",
            lambda function: ReciprocalSquareRoot(function, 8),
            root,
            root_bound(root),
            positive,
        ),
    )

    def transaction(
        build: Callable[[Any], wiring.Component], function: object, bound: Relation, allowed: Condition | None
    ) -> Transaction:
        return Transaction(build(function), bound, allowed)

    definition = partial(RequantizeDefinition, 32, 31, QFormat(8, 0))
    return [
        Proof(
            "requantize",
            "equals its definition for every number of 32 bits and every shift",
            definition,
            "bmc",
            1,
            "rounds down instead of half up",
            lambda: definition(cast=lambda number, shift: number >> shift),
            gates=False,
        ),
        Proof(
            "requantize",
            "the core gives what the definition gives, for every number of 12 bits and shifts from -1 to 6",
            lambda: Transaction(Requantize(*REQUANTIZE), requantize_definition(REQUANTIZE[1]), within_shifts),
            "bmc",
            9,
            "wraps instead of saturating",
            lambda: Transaction(
                build_patched(lambda: Requantize(*REQUANTIZE), hdl.parts.requantize, saturate=wrap),
                requantize_definition(REQUANTIZE[1]),
                within_shifts,
            ),
        ),
        *(
            Proof(
                name,
                "stays within its stated error bound for every argument",
                partial(transaction, build, function, bound, allowed),
                "bmc",
                9,
                "has one wrong table entry",
                partial(transaction, build, with_wrong_entry(function), bound, allowed),
                gates=False,
            )
            for name, build, function, bound, allowed in bounded
        ),
    ]


class NarrowSum(fixedpoint.LayerNorm):
    """A LayerNorm whose sum has a bit less than it needs."""

    @property
    def sum_bits(self) -> int:
        """One bit too few."""
        return super().sum_bits - 1


class NarrowVariance(fixedpoint.RMSNorm):
    """An RMSNorm whose v has two bits less than it needs."""

    @property
    def variance_bits(self) -> int:
        """Two bits too few: one is room for epsilon."""
        return super().variance_bits - 2


class Understated(fixedpoint.Exponential):
    """An exponential whose stated maximum is half of what it reaches."""

    @property
    def maximum(self) -> int:
        """Half of what the table's entries reach."""
        return super().maximum >> 1


def products() -> list[Proof]:
    """Two 4-bit weights share a multiplier."""
    return [
        Proof(
            "engine",
            "two products from one multiplier equal both, for every 8-bit number and every two 4-bit weights",
            lambda: PairsOfProducts(8, 4),
            "bmc",
            1,
            "the upper product keeps what the lower one borrowed",
            lambda: PairsOfProducts(
                8,
                4,
                lambda product, spacing: (product[:spacing].as_signed(), product[spacing:].as_signed(), Const(0, 1)),
            ),
        )
    ]


def changed(kind: type, parameters: Any, **values: object) -> Any:
    """Return parameters as another class, with cached properties set."""
    result = kind(**{name: getattr(parameters, name) for name in parameters.__dataclass_fields__})
    result.__dict__.update(values)
    return result


def understated_softmax() -> fixedpoint.Softmax:
    """Return a softmax whose exponentials have a maximum that is too small."""
    softmax = tiny_softmax()
    exponential = changed(Understated, softmax.exponential, table=softmax.exponential.table)
    return fixedpoint.Softmax(softmax.score, softmax.length, exponential, softmax.reciprocal, softmax.probability)


def sums() -> list[Proof]:
    """No accumulator overflows."""
    norm, rms = tiny_norm(2, 3), tiny_rms_norm(4, 3)
    tall = tiny_norm(4, 2)

    def engine(terms: int) -> Engine:
        return Engine(2, (1, 2), 2, terms, activation_bits=3, element_bits=2)

    return [
        Proof(
            "engine",
            "adder trees of 2 to 9 numbers of 4 bits never overflow",
            lambda: TreesNeverOverflow(range(2, 10), 4),
            "bmc",
            6,
            "sums have a bit too few",
            lambda: TreesNeverOverflow(range(2, 10), 4, 1),
        ),
        Proof(
            "engine",
            "adder trees of 2 to 9 numbers of 4 bits never overflow, two adders from register to register",
            lambda: TreesNeverOverflow(range(2, 10), 4, levels=2),
            "bmc",
            4,
            "sums have a bit too few",
            lambda: TreesNeverOverflow(range(2, 10), 4, 1, levels=2),
        ),
        Proof(
            "engine",
            "sums of products equal sums of more bits, in every operation, for all activations of 3 bits and weights of 2",
            lambda: SumsAreExact(engine(TERMS), TERMS),
            "bmc",
            15,
            "made for sums of one word",
            lambda: SumsAreExact(engine(TERMS - 1), TERMS),
            free_memories=True,
        ),
        Proof(
            "softmax-numerators",
            "a denominator is the sum of its numerators, and positive",
            lambda: DenominatorsAreExact(SoftmaxNumerators(tiny_softmax()), {"i": (1, 2)}),
            "bmc",
            15,
            "the denominator has a bit too few",
            lambda: DenominatorsAreExact(SoftmaxNumerators(understated_softmax()), {"i": (1, 2)}),
        ),
        Proof(
            "layer-norm",
            "S and v of a row never overflow, 2 elements of 3 bits",
            lambda: StatisticsNeverOverflow(RowStatistics(norm, 1)),
            "bmc",
            15,
            "the sum S has one bit too few",
            lambda: StatisticsNeverOverflow(RowStatistics(changed(NarrowSum, norm), 1)),
        ),
        Proof(
            "layer-norm-lanes",
            "S and v of a row never overflow, 4 elements of 2 bits, 2 a cycle",
            lambda: StatisticsNeverOverflow(RowStatistics(tall, 2)),
            "bmc",
            15,
            "the sum S has one bit too few",
            lambda: StatisticsNeverOverflow(RowStatistics(changed(NarrowSum, tall), 2)),
        ),
        Proof(
            "rms-norm",
            "the sum of squares of a row and v never overflow, 4 elements of 3 bits",
            lambda: StatisticsNeverOverflow(RowStatistics(rms, 1)),
            "bmc",
            15,
            "v has two bits too few",
            lambda: StatisticsNeverOverflow(RowStatistics(changed(NarrowVariance, rms), 1)),
        ),
    ]
