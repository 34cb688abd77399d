"""What the engine multiplies: a memory's word and the activations that belong to it."""

from collections.abc import Sequence

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data

from ..parts.banked_memory import BankedMemory
from ..parts.dot_product import Delay
from ..parts.registers import data_register
from .program import Work
from .row_ports import each
from .states import State, select
from .units import Units


def memory_word(m: Module, units: Units, command: data.View) -> tuple[data.View, BankedMemory]:
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
    layout = data.ArrayLayout(unsigned(units.parameters.element_bits), plan.lanes)
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


def operands(m: Module, units: Units, issued: Sequence[data.View], states: Sequence[State]) -> data.View:
    """Return the activations of a command, together with its word."""
    plan, memory = units.plan, units.memory_latency
    layout = data.ArrayLayout(signed(units.parameters.activation_bits), plan.lanes)
    chosen, result = data_register(layout, name="chosen"), data_register(layout, name="operands")
    early, late = issued[memory - 2], issued[memory - 1]
    numerators = _numerators(m, units)
    width = plan.hidden_slices * plan.columns

    def of(rows: list[list], place: Value) -> Value:
        return Array(select([row[number] for row in rows], early.sequence) for number in range(len(rows[0])))[place]

    for lane in range(plan.lanes):
        column, channel = lane % plan.columns, lane % plan.kv_channels
        with m.If(early.work != Work.WEIGHTS):
            m.d.sync += chosen[lane].eq(
                of([state.hidden[channel : plan.channels : plan.kv_channels] for state in states], early.part)
            )
        with m.Elif(early.hidden):
            m.d.sync += chosen[lane].eq(
                of([state.hidden[column : width : plan.columns] for state in states], early.slice)
            )
        with m.Else():
            m.d.sync += chosen[lane].eq(of([state.vector[column :: plan.columns] for state in states], early.slice))
        slot, head = lane // plan.kv_channels, channel // plan.head_dim
        with m.If(late.work == Work.VALUES):
            m.d.sync += result[lane].eq(numerators[head][slot])
        with m.Else():
            m.d.sync += result[lane].eq(chosen[lane])
    return result


def _numerators(m: Module, units: Units) -> list[data.View]:
    """Return each head's numerators, of all slots, in time for the last operand register."""
    late = []
    for head, unit in enumerate(units.softmax):
        m.submodules[f"softmax_{head}"] = unit
        m.submodules[f"numerators_{head}"] = wait = Delay(unit.o.numerators.shape(), units.numerators_wait)
        m.d.comb += [wait.en.eq(1), wait.i.eq(unit.o.numerators)]
        late.append(wait.o)
    return late
