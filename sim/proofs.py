# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""What is proven, core by core.

Rules of streams and finishing are proven by induction, for all time. Claims about numbers are bounded to the first transfers after reset; no core
remembers more of the past than the row it works on. Cores are the smallest that have every part: the solver's work grows with the widths,
while the arithmetic is the same expression at every width.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from amaranth.hdl import Assume, Module, Signal
from amaranth.lib import wiring

import fixedpoint
from fixedpoint import QFormat
from hdl.engine import Engine
from hdl.exponential import Exponential
from hdl.layer_norm import LayerNorm
from hdl.matrix_vector import MatrixVector
from hdl.reciprocal import Reciprocal, ReciprocalSquareRoot
from hdl.registry import CORES
from hdl.rms_norm import RMSNorm
from hdl.row_statistics import RowStatistics
from hdl.softmax import Softmax, SoftmaxNumerators
from hdl.stream_parts import StreamRegister

from .proof import Proof
from .proof_claims import (
    Conserves,
    Finishes,
    ReachesEndOfRow,
    RequantizeDefinition,
    StatisticsNeverOverflow,
    Transaction,
    exponential_bound,
    reciprocal_bound,
    root_bound,
)
from .proof_faults import Blocking, Repeating, Silent, Withdrawing
from .stream_rules import Environment

CONSERVED = 16  # cycles after reset in which payloads are counted
BOUNDED = 15  # cycles after reset
INDUCTION = 3  # cycles that the rules of streams need: an offer, its refusal, and the cycle after


def all_proofs() -> tuple[Proof, ...]:
    """Return every proof."""
    return (*rules(), *finishing(), *conservation(), *arithmetic(), *overflow())


def rules() -> list[Proof]:
    """Every stream of every core keeps the rules."""
    return [
        Proof(
            name,
            "keeps the rules of streams on every port",
            lambda entry=entry: (
                EngineRules(tiny_engine()) if entry.name in BOUNDED_RULES else Environment(entry.example())
            ),
            "bmc" if name in BOUNDED_RULES else "prove",
            BOUNDED if name in BOUNDED_RULES else INDUCTION,
            "takes an offer back after it was refused",
            lambda entry=entry: (
                EngineRules(Withdrawing(tiny_engine()))
                if entry.name in BOUNDED_RULES
                else Environment(Withdrawing(entry.example()))
            ),
        )
        for name, entry in CORES.items()
    ]


class EngineRules(Environment):
    """The rules for the engine, whose commands come in sums: `first` after each `last`, one operation and tap from first to last."""

    def claims(self, m: Module) -> None:
        """Assume whole sums."""
        command, between = self.core.i.payload, Signal(init=1)
        operation, tap = Signal.like(command.operation), Signal.like(command.tap)
        with m.If(self.taken["i"]):
            m.d.sync += [between.eq(command.last), operation.eq(command.operation), tap.eq(command.tap)]
        m.d.comb += Assume(command.first == between)
        with m.If(~between):
            m.d.comb += [Assume(command.operation == operation), Assume(command.tap == tap)]


# Cores whose offers stay because of what was promised many cycles before; induction would need to know of it.
BOUNDED_RULES = ("engine",)


def tiny_engine() -> Engine:
    """Return 2 lanes of 2-bit numbers with every operation."""
    return Engine(2, (1, 2), 2, 2, activation_bits=2, element_bits=2)


def tiny_softmax() -> fixedpoint.Softmax:
    """Return rows of at most 3 scores of 4 bits."""
    return fixedpoint.Softmax(
        QFormat(4, 1), 3, fixedpoint.Exponential(1, 1, 2), fixedpoint.Reciprocal(2, 3), QFormat(3, 3, signed=False)
    )


def tiny_norm(channels: int = 2, bits: int = 4) -> fixedpoint.LayerNorm:
    """Return a LayerNorm of few short numbers."""
    ones, zeros = np.ones(channels), np.zeros(channels)
    return fixedpoint.LayerNorm.from_float(ones, zeros, 1e-5, QFormat(bits, 2), QFormat(4, 2), 4)


def tiny_rms_norm(channels: int = 2, bits: int = 4) -> fixedpoint.RMSNorm:
    """Return an RMSNorm of few short numbers."""
    return fixedpoint.RMSNorm.from_float(np.ones(channels), 1e-5, QFormat(bits, 2), QFormat(4, 2), 4)


def tiny_linear() -> fixedpoint.Linear:
    """Return a matrix of 2 rows and 3 columns of the largest weights, so that sums reach their limits."""
    weight = np.array([[7.0, 7.0, 7.0], [-8.0, -8.0, -8.0]])
    return fixedpoint.Linear.from_float(weight, np.array([5.0, -5.0]), 4, QFormat(3, 0), QFormat(3, -3))


CORES_IN_ROWS: dict[str, tuple[Callable[[], wiring.Component], tuple[int, int]]] = {
    "softmax-numerators": (lambda: SoftmaxNumerators(tiny_softmax()), (1, 3)),
    "softmax": (lambda: Softmax(tiny_softmax()), (1, 3)),
    "layer-norm": (lambda: LayerNorm(tiny_norm()), (2, 2)),
    "rms-norm": (lambda: RMSNorm(tiny_rms_norm()), (2, 2)),
    "matrix-vector": (lambda: MatrixVector(tiny_linear(), 2), (3, 3)),
}
# Cycles within which a row must end when nobody stalls.
FINISHING_BOUNDS = {"softmax-numerators": 14, "softmax": 24, "layer-norm": 30, "rms-norm": 26, "matrix-vector": 32}
# Induction would begin in states that no reset leads to, with rows in one queue that another knows nothing of.
WITH_QUEUES = ("matrix-vector", "softmax-numerators", "softmax", "layer-norm", "rms-norm")
STALLING = 10  # cycles of any stalls before
# The most payloads that are inside one of these at once.
CAPACITIES = {"softmax-numerators": 16, "softmax": 32, "layer-norm": 48, "rms-norm": 48}


def finishing() -> list[Proof]:
    """Every core can always finish a row."""
    cores = {name: (build, FINISHING_BOUNDS[name]) for name, (build, _) in CORES_IN_ROWS.items()}
    for name in ("exponential", "reciprocal", "reciprocal-square-root"):
        cores[name] = (CORES[name].example, 16)
    proofs = [
        Proof(
            name,
            f"gives the end of a row within {bound} cycles without stalls, after {STALLING} with any"
            if name in WITH_QUEUES
            else f"gives the end of a row within {bound} cycles without stalls, from any state",
            lambda build=build, bound=bound: Finishes(build(), bound),
            "bmc" if name in WITH_QUEUES else "prove",
            bound + (STALLING if name in WITH_QUEUES else 2),
            "offers nothing more after two refusals in a row" if name in WITH_QUEUES else "never offers anything",
            lambda name=name, build=build, bound=bound: Finishes(
                (Blocking if name in WITH_QUEUES else Silent)(build()), bound
            ),
        )
        for name, (build, bound) in cores.items()
    ]
    reach = [
        Proof(
            name,
            "can give two rows",
            lambda build=build, lengths=lengths: ReachesEndOfRow(build(), 2, {"i": lengths}),
            "cover",
            64,
        )
        for name, (build, lengths) in CORES_IN_ROWS.items()
    ]
    return [*proofs, *reach]


def conservation() -> list[Proof]:
    """Nothing is lost or made up, and the cores' own assertions (queues never overrun, counts agree) hold."""
    rows = [
        Proof(
            name,
            f"gives what it took, at most {capacity} payloads are inside, and its own assertions hold, {CONSERVED} cycles",
            lambda name=name, capacity=capacity: Conserves(
                CORES_IN_ROWS[name][0](), capacity, {"i": CORES_IN_ROWS[name][1]}
            ),
            "bmc",
            CONSERVED,
            "gives its first result twice",
            lambda name=name, capacity=capacity: Conserves(
                Repeating(CORES_IN_ROWS[name][0]()), capacity, {"i": CORES_IN_ROWS[name][1]}
            ),
            internal=True,
        )
        for name, capacity in CAPACITIES.items()
    ]
    register = Proof(
        "stream-register",
        f"gives what it took, at most 2 payloads are inside, {CONSERVED} cycles",
        lambda: Conserves(StreamRegister(4), 2),
        "bmc",
        CONSERVED,
        "gives its first result twice",
        lambda: Conserves(Repeating(StreamRegister(4)), 2),
    )
    return [*rows, register]


def with_wrong_entry(function, index: int = 1):
    """Return a function whose table has one entry a little more than half too large."""
    table = function.table.copy()
    table[index] += (function.table.max() >> 1) - 1
    wrong = type(function)(**{name: getattr(function, name) for name in function.__dataclass_fields__})
    wrong.__dict__["table"] = table  # in place of what the cached property would compute
    return wrong


def positive(argument):
    """Say that an argument is not zero."""
    return argument != 0


def arithmetic() -> list[Proof]:
    """Requantize equals its definition; table functions stay within their stated bounds for every argument."""
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
        ),
        *(
            Proof(
                name,
                "stays within its stated error bound for every argument",
                lambda build=build, function=function, bound=bound, allowed=allowed: Transaction(
                    build(function), bound, allowed
                ),
                "bmc",
                9,
                "has one wrong table entry",
                lambda build=build, function=function, bound=bound, allowed=allowed: Transaction(
                    build(with_wrong_entry(function)), bound, allowed
                ),
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


def overflow() -> list[Proof]:
    """No accumulator overflows."""
    norm, rms = tiny_norm(4, 2), tiny_rms_norm(8, 2)  # rows as long as the way to the number in question

    def narrowed(kind, parameters):
        return kind(**{name: getattr(parameters, name) for name in parameters.__dataclass_fields__})

    return [
        Proof(
            "layer-norm",
            "the sum of a row, S, never overflows",
            lambda: StatisticsNeverOverflow(RowStatistics(norm, 1)),
            "bmc",
            12,
            "the sum S has one bit too few",
            lambda: StatisticsNeverOverflow(RowStatistics(narrowed(NarrowSum, norm), 1)),
        ),
        Proof(
            "rms-norm",
            "the sum of squares of a row and v never overflow",
            lambda: StatisticsNeverOverflow(RowStatistics(rms, 1)),
            "bmc",
            18,
            "v has two bits too few",
            lambda: StatisticsNeverOverflow(RowStatistics(narrowed(NarrowVariance, rms), 1)),
        ),
    ]
