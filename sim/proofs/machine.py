# amaranth: UnusedElaboratable=no
# (a machine may be built only to be asked for its parts)
"""What is proven of the whole machine's ports: a token given for each one taken, and none changed.

A sequence's last results pass from the sequencer to the offer through pipelines that nothing stops.
So the claims need what is known of all their stages: only one of them holds a program's last
results, and then the sequencer has no step left, and no token has been taken since.
"""

from collections.abc import Callable
from functools import partial

from amaranth.hdl import Array, Assert, Const, Module, Mux, Signal, Value

from hdl.decoder.machine import Machine
from hdl.decoder.program import Destination, Work

from .internals import count_ones
from .proof import Proof
from .seeded_bugs import Build, Losing
from .sequencer import tiny_plan
from .stream_rules import Environment

NAME = "decoder-machine"


def tiny_machine() -> Machine:
    """Return the machine of a layer of three query heads that share a key head."""
    return Machine(tiny_plan())


class GivesATokenForEach(Environment):
    """A machine of one sequence, whose payload is left to the claim that none is chosen while one
    is offered: the register of the payload is loaded by that alone.
    """

    asserts_payload = False

    def claims(self, m: Module) -> None:
        """Claim it, and what holds of every stage."""
        machine, offered = self.elaborated.core, self.core.o.valid
        assert isinstance(machine, Machine)
        inside, sequencer, choice = machine.internals, machine.sequencer, machine.choose.internals.tags
        outstanding = Signal(2)
        m.d.sync += outstanding.eq(outstanding + self.taken["i"] - self.taken["o"])
        m.d.comb += [
            Assert(outstanding == inside.busy, "a token is given for each one taken"),
            Assert(~machine.choose.o.valid | ~machine.o.valid, "no token is chosen while one is offered"),
        ]
        chosen = Signal()
        m.d.sync += chosen.eq(machine.choose.o.valid)
        m.d.comb += Assert(~chosen | machine.o.valid, "what is chosen is offered, ready or not")
        m.d.comb += Assert(offered == machine.o.valid)

        # Stages that may hold the last results of a program.
        last = [
            tag.valid & (tag.work == Work.WEIGHTS) & tag.last & tag.final & (tag.destination == Destination.LOGITS)
            for tag in inside.issued
        ]
        places = inside.places.taps[1:]
        last += [place.valid & place.final & (place.destination == Destination.LOGITS) for place in places]
        last += [tag.valid & tag.last for tag in choice.taps[1:]]
        last += [machine.choose.o.valid, machine.o.valid]
        held = count_ones(last)
        now = sequencer.internals
        entries = sequencer.entries()
        table = [sequencer.fields.from_bits(entry) for entry in entries]
        assert [entry.destination for entry in table].index(Destination.LOGITS) == len(entries) - 1
        end = len(entries)
        at_end, under_way = now.number == end, now.taken | now.counted | now.looked_up
        idle = at_end & ~now.now_valid & ~now.following_valid & ~under_way
        entry = Array([Const(one, sequencer.fields.size) for one in [*entries, 0]])[now.number]

        def logits(step: Value) -> Value:
            return sequencer.fields(step).destination == Destination.LOGITS

        m.d.comb += [
            Assert(held <= 1, "the last results are in one place"),
            Assert((held == 0) | (idle & inside.busy & ~inside.start), "then the program has ended"),
            Assert(inside.busy | (idle & ~inside.start), "without a token there is no work"),
            Assert(~inside.start | idle, "a token comes when no step is left"),
            Assert(now.number <= end, "no step behind the program"),
            Assert(now.taken + now.counted + now.looked_up <= 1, "one thing is done with the table's entry"),
            Assert(~now.taken | ~at_end, "no step behind the last one is taken"),
            Assert(~now.looked_up | (~at_end & (now.entry == entry)), "the step behind the table"),
            Assert(
                ~now.following_valid
                | ~logits(now.following)
                | (~now.looked_up & Mux(now.taken, now.number == end - 1, at_end)),
                "the logits follow last",
            ),
            Assert(
                ~now.now_valid | ~logits(now.now) | (at_end & ~now.following_valid & ~now.taken & ~now.looked_up),
                "and come last",
            ),
        ]


def machine_proofs() -> list[Proof]:
    """Return what is proven of the whole machine's ports."""

    def top(build: Build, change: Callable = lambda core: core) -> GivesATokenForEach:
        return GivesATokenForEach(change(build()))

    return [
        Proof(
            NAME,
            "gives a token for each one taken, offered until it is taken, ready or not, and chosen while none is offered",
            partial(top, tiny_machine),
            "prove",
            2,
            "forgets the first token",
            partial(top, tiny_machine, Losing),
        ),
    ]
