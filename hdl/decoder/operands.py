"""What the engine multiplies: a memory's word and the activations that belong to it."""

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data

from ..parts.banked_memory import BankedMemory
from ..parts.copies import Copies
from ..parts.dot_product import Delay
from ..parts.registers import data_register
from .program import Work
from .row_ports import each
from .states import State, select
from .units import AttentionUnits

LANES_PER_COPY = 8  # of what says which register a lane's activation comes from


def memory_word(m: Module, units: AttentionUnits, command: data.View) -> tuple[data.View, BankedMemory]:
    """Return the word of a command, of the weights or of the cache, and the memory of the cache."""
    plan, memory = units.plan, units.memory_latency
    # Made here, with their contents: who asks for cycles alone does not wait for them.
    memories = units.make_memories(plan.weight_words())
    elements = []
    for name, unit in zip(("words", "cache"), memories, strict=False):
        m.submodules[name] = unit
        m.d.comb += unit.address.eq(command.address)
        bits = len(unit.word) // plan.lanes
        stages = memory - len(memories) + 1 - unit.latency
        m.submodules[f"{name}_wait"] = wait = Delay(unsigned(len(unit.word)), stages)
        m.d.comb += [wait.en.eq(1), wait.i.eq(unit.word)]
        elements.append(data.View(data.ArrayLayout(signed(bits), plan.lanes), wait.o))
    layout = data.ArrayLayout(unsigned(units.engine.parameters.element_bits), plan.lanes)
    if plan.one_memory:
        word = Signal(layout)
        m.d.comb += each(word, elements[0])
        return word, memories[-1]
    m.submodules.which = which = Delay(unsigned(1), memory - 1)
    m.d.comb += [which.en.eq(1), which.i.eq(command.work != Work.WEIGHTS)]
    chosen = data_register(layout, name="chosen_word")
    for lane in range(plan.lanes):
        weight, held = elements[0][lane], elements[1][lane]
        # pairs keep their bits, single weights their value
        m.d.sync += chosen[lane].eq(Mux(which.o, held, weight.as_unsigned() if plan.pairs else weight))
    return chosen, memories[-1]


def operands(m: Module, units: AttentionUnits, ahead: Sequence[data.View], states: Sequence[State]) -> data.View:
    """Return the activations of a command, together with its word.

    Args:
        m: The machine's module.
        units: Its units.
        ahead: Commands by cycles since their issue: what all lanes look at is copied a cycle early.
        states: The sequences'.
    """
    plan, memory = units.plan, units.memory_latency
    layout = data.ArrayLayout(signed(units.engine.parameters.activation_bits), plan.lanes)
    chosen, result = data_register(layout, name="chosen"), data_register(layout, name="operands")
    early, late = ahead[memory - 2], ahead[memory - 1]
    numerators = _numerators(m, units)
    width = plan.hidden_slices * plan.columns
    # The queries of each pass, then the slices of the hidden row, then those of the vector.
    slices = plan.passes + Mux(early.hidden, 0, plan.hidden_slices) + early.slice
    number = Signal(range(plan.passes + plan.hidden_slices + len(states[0].vector[:: plan.columns])))
    m.d.comb += number.eq(Mux(early.work == Work.WEIGHTS, slices, early.part))
    count = -(-plan.lanes // LANES_PER_COPY)
    choices = Copies(len(number) + len(early.sequence), count)
    of_values = Copies(1, count)
    m.submodules.operand_choices, m.submodules.operands_of_values = choices, of_values
    m.d.comb += [choices.i.eq(Cat(number, early.sequence)), of_values.i.eq(late.work == Work.VALUES)]
    for lane in range(plan.lanes):
        column, channel, copy = lane % plan.columns, lane % plan.kv_channels, lane // LANES_PER_COPY
        rows = [
            [
                *state.hidden[channel : plan.channels : plan.kv_channels],
                *state.hidden[column : width : plan.columns],
                *state.vector[column :: plan.columns],
            ]
            for state in states
        ]
        place, sequence = choices.o[copy][: len(number)], choices.o[copy][len(number) :]
        m.d.sync += chosen[lane].eq(Array(select(list(places), sequence) for places in zip(*rows, strict=True))[place])
        slot, head = lane // plan.kv_channels, channel // plan.head_dim
        m.d.sync += result[lane].eq(Mux(of_values.o[copy], numerators[head][slot], chosen[lane]))
    return result


def _numerators(m: Module, units: AttentionUnits) -> list[data.View]:
    """Return each head's numerators, of all slots, in time for the last operand register."""
    late = []
    for head, unit in enumerate(units.softmax):
        m.submodules[f"softmax_{head}"] = unit
        m.submodules[f"numerators_{head}"] = wait = Delay(unit.o.numerators.shape(), units.numerators_wait)
        m.d.comb += [wait.en.eq(1), wait.i.eq(unit.o.numerators)]
        late.append(wait.o)
    return late
