# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""What is proven about streams and control, core by core; `arithmetic` has what is proven about
numbers.

Nearly all of it is proven by induction, for all time. What is not says so by its method: it is
bounded to the first cycles after reset.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

from amaranth.hdl import Assert, Module, ShapeLike
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered

import hdl.cores.engine
import hdl.cores.row_norm
import hdl.cores.softmax
import hdl.cores.uart
from hdl.catalog.registry import CORES
from hdl.cores.layer_norm import LayerNorm
from hdl.cores.softmax import SoftmaxNumerators
from hdl.cores.uart import UART
from hdl.parts.stream_parts import CreditQueue

from .arithmetic import arithmetic_proofs
from .conservation import Conservation, Invariants, WholeSums, no_invariants
from .cores import FEW_MAXIMA, TINY_CORES, TinyCore, tiny_attention, tiny_engine, tiny_norm, tiny_softmax
from .invariants import engine as engine_invariants
from .invariants import uart as uart_invariants
from .liveness import Finishes, FinishesAfterReset, Loopback, ReachesEndOfRow
from .machine import machine_proofs
from .proof import Proof
from .seeded_bugs import Blocking, Build, Losing, Silent, Waiting, Withdrawing, build_patched, slow_receiver
from .sequencer import sequencer_proofs
from .stream_rules import Environment

# cycles that the rules of streams need: an offer, its refusal, and the cycle after
RULES_INDUCTION = 3
CONSERVATION_INDUCTION = 2
ATTENTION_BOUND = 66  # cycles after reset within which attention gives its first token's results
UART_DIVISOR = 4
LOOPBACK_CYCLES = 50  # a byte's 9.5 bits of 4 cycles, and the pipeline


def pipelines() -> dict[str, int]:
    """Return the cores without queues and the bound on their results from any state, in cycles."""
    others = {*TINY_CORES, "attention", "uart"}
    return {name: entry.example().latency + 1 for name, entry in CORES.items() if name not in others}


def all_proofs() -> tuple[Proof, ...]:
    """Return every proof."""
    return (
        *rules(),
        *conservation(),
        *overruns(),
        *liveness(),
        *reachability(),
        *serial_port(),
        *sequencer_proofs(),
        *machine_proofs(),
        *arithmetic_proofs(),
    )


def rules() -> list[Proof]:
    """Every stream of every core keeps the rules."""
    proofs = []
    for name, entry in CORES.items():
        build = TINY_CORES[name].build if name in TINY_CORES else entry.example
        top = partial(_rules, entry.example)
        faulty = partial(_withdrawing, build)
        if name == "engine":  # its results have a place because of credits spent many cycles before
            top = partial(_engine_rules, tiny_engine, engine_invariants)
            faulty = partial(_engine_rules, lambda: Withdrawing(tiny_engine()), no_invariants)
        if name == "attention":
            faulty = partial(_withdrawing, tiny_attention)
        proofs.append(
            Proof(
                name,
                "keeps the rules of streams on every port",
                top,
                "prove",
                RULES_INDUCTION,
                "takes an offer back after it was refused",
                faulty,
                gates=name == "engine",
                bug_depth=ATTENTION_BOUND if name == "attention" else 48,
            )
        )
    return proofs


def _rules(build: Build) -> Environment:
    return Environment(build())


def _withdrawing(build: Build) -> Environment:
    environment = Environment(Withdrawing(build()))
    environment.asserts_payload = False  # the bug is in the handshake
    return environment


def _engine_rules(build: Build, invariants: Invariants) -> WholeSums:
    return WholeSums(build(), invariants)


def conservation() -> list[Proof]:
    """Accepted − delivered = stored; counters and queues stay within their ranges."""
    return [
        Proof(
            name,
            "gives what it took, nothing twice, nothing lost; its queues and counters stay within their ranges",
            partial(_conservation, core, lambda build: build()),
            "prove",
            CONSERVATION_INDUCTION,
            "forgets the first payload of each input",
            partial(_conservation, core, lambda build: Losing(build())),
            internal=True,
        )
        for name, core in TINY_CORES.items()
    ]


def _conservation(core: TinyCore, change: Callable[[Build], wiring.Component]) -> Conservation:
    return core.environment(change(core.build), core.invariants, core.row_lengths)


def overruns() -> list[Proof]:
    """Writes without a handshake find room: an engine's results, a norm's roots, row maxima."""
    engine, norm, numerators = (TINY_CORES[name] for name in ("engine", "layer-norm", "softmax-numerators"))
    fifos = SimpleNamespace(SyncFIFOBuffered=lambda *, width, depth: SyncFIFOBuffered(width=width, depth=depth - 2))
    return [
        Proof(
            "engine",
            "a result always finds room",
            partial(_conservation, engine, lambda build: build()),
            "prove",
            CONSERVATION_INDUCTION,
            "the FIFO of results has two places fewer",
            lambda: WholeSums(
                build_patched(tiny_engine, hdl.cores.engine, CreditQueue=_two_places_fewer), no_invariants
            ),
            internal=True,
        ),
        Proof(
            "layer-norm",
            "a row's root and sum always find room, and are there before its words need them",
            partial(_conservation, norm, lambda build: build()),
            "prove",
            CONSERVATION_INDUCTION,
            "the FIFOs of roots and sums have two places",
            lambda: Conservation(
                build_patched(lambda: LayerNorm(tiny_norm()), hdl.cores.row_norm, SyncFIFO=_two_places),
                no_invariants,
                norm.row_lengths,
            ),
            internal=True,
        ),
        Proof(
            "softmax-numerators",
            "a row's maximum always finds room",
            partial(_conservation, numerators, lambda build: build()),
            "prove",
            CONSERVATION_INDUCTION,
            "the FIFO of maxima has two places fewer",
            lambda: Conservation(
                build_patched(
                    lambda: SoftmaxNumerators(tiny_softmax()), hdl.cores.softmax, MAXIMA=FEW_MAXIMA, fifo=fifos
                ),
                _maxima_find_room,
                numerators.row_lengths,
            ),
        ),
    ]


def _two_places_fewer(shape: ShapeLike, depth: int) -> CreditQueue:
    return CreditQueue(shape, depth - 2)


def _two_places(*, width: int, depth: int) -> SyncFIFO:
    return SyncFIFO(width=width, depth=2)


def _maxima_find_room(environment: Conservation, m: Module) -> list[Assert]:
    fifo = environment.elaborated.internals.maxima
    return [Assert(~fifo.w_en | fifo.w_rdy, "maxima: never overrun")]


def liveness() -> list[Proof]:
    """Every core can always finish a row."""
    stages = [
        Proof(
            name,
            f"offers a result within {bound} cycles of inputs without stalls, ready or not, from any state",
            partial(_pipeline_finishes, CORES[name].example, bound),
            "prove",
            bound + 2,
            "offers a result only while it can be taken",
            partial(_waiting_pipeline, CORES[name].example, bound),
        )
        for name, bound in pipelines().items()
    ]
    queues = [
        Proof(
            name,
            f"{'takes a command' if name == 'engine' else 'ends a row'} within {core.bound} cycles without stalls, after any with stalls",
            partial(_finishes, core),
            "prove",
            core.bound + 2,
            "offers nothing more after two refusals in a row",
            partial(_blocking, core),
            bug_depth=max(48, 2 * core.bound + 8),
        )
        for name, core in TINY_CORES.items()
    ]
    attention = Proof(
        "attention",
        f"gives its first token's results within {ATTENTION_BOUND} cycles of reset without stalls",
        lambda: FinishesAfterReset(tiny_attention(), ATTENTION_BOUND),
        "bmc",
        ATTENTION_BOUND + 2,
        "never offers anything",
        lambda: FinishesAfterReset(Silent(tiny_attention()), ATTENTION_BOUND),
    )
    return [*stages, *queues, attention]


def _pipeline_finishes(build: Build, bound: int) -> Finishes:
    environment = Finishes(build(), bound)
    environment.ends_rows = False
    return environment


def _waiting_pipeline(build: Build, bound: int) -> Finishes:
    return _pipeline_finishes(lambda: Waiting(build()), bound)


def _finishes(core: TinyCore) -> Conservation:
    environment = core.environment(core.build(), core.invariants, core.row_lengths, core.bound)
    environment.asserts_rules = False
    return environment


def _blocking(core: TinyCore) -> Conservation:
    environment = core.environment(Blocking(core.build()), no_invariants, core.row_lengths, core.bound)
    environment.asserts_rules = False
    return environment


def reachability() -> list[Proof]:
    """The end of rows can be reached: the assumptions leave the cores something to do."""
    return [
        Proof(name, "can give two rows", partial(_reaches_two_rows, core), "cover", 64)
        for name, core in TINY_CORES.items()
        if name != "engine"
    ]


def _reaches_two_rows(core: TinyCore) -> ReachesEndOfRow:
    return ReachesEndOfRow(core.build(), 2, core.row_lengths)


def serial_port() -> list[Proof]:
    """What a UART sends, it receives."""
    build = partial(UART, UART_DIVISOR)
    return [
        Proof(
            "uart",
            "its counters stay within a bit's cycles and a frame's bits",
            lambda: Conservation(UART(UART_DIVISOR + 1), uart_invariants),
            "prove",
            CONSERVATION_INDUCTION,
            "a frame has a bit too many",
            lambda: Conservation(
                build_patched(lambda: UART(UART_DIVISOR + 1), hdl.cores.uart, FRAME_BITS=11), uart_invariants
            ),
        ),
        Proof(
            "uart",
            f"receives each byte that it sends to itself, the first within {LOOPBACK_CYCLES} cycles",
            lambda: Loopback(build(), LOOPBACK_CYCLES),
            "bmc",
            LOOPBACK_CYCLES + 2,
            "the receiver counts five cycles a bit, the sender four",
            lambda: Loopback(build_patched(build, hdl.cores.uart, UARTReceiver=slow_receiver), LOOPBACK_CYCLES),
        ),
    ]
