# amaranth: UnusedElaboratable=no
# (the machine may be built only to ask for its cycles)
"""The whole decoder as one circuit: a token in, the next token out.

    token ─ embedding ─ residual stream ─ norm ─ vector ─┐
                              │                          ├─ engine ─ requantize ─ rotate ─ query
      hidden ─ activation ────┼──────────────────────────┤             │            └─── key, value
      query, numerators ──────┼──────────────────────────┘             ├─ residual, hidden
                              └────────────────────────────────────────┴─ choice ─ token

One engine multiplies everything: weights, keys, values. The units around it serve all layers; what
differs between layers (formats, scales, tables) is looked up by layer. Nothing stalls, so the
program alone decides when what happens.
"""

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, Module, Mux, ShapeLike, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation
from fixedpoint.operators.sampling import MULTIPLIER_BITS

from ..cores.engine_datapath import EngineDatapath
from ..errors import CircuitError
from ..parts.banked_memory import BankedMemory
from ..parts.dot_product import Delay
from ..parts.registers import data_register
from .choose_rows import ChooseRows
from .divide import DivideRows
from .hidden_rows import HiddenRows
from .plan import Plan
from .program import Destination, Event, Latencies, Work, make_program
from .requantize_rows import RequantizeRows
from .residual import EmbeddingRows, ResidualRows
from .rotate_rows import RotateRows
from .row_norms import RowNorms
from .score_rows import RANDOM_BITS, ScoreRows
from .sequencer import Sequencer
from .softmax_rows import SoftmaxRows

ISSUE_STAGES = 1  # from an issue to its command
BANK_WORDS = 1024  # of the memory's banks: half as many to choose from as with 512


class Machine(wiring.Component):
    """`fixedpoint.QuantizedTransformer` with the choice of a token as a circuit.

    A token goes in, the next one comes out; keys and values stay. It is the likeliest one, or with
    `plan.sampling` and `sample` one that `fixedpoint.Sampler` chooses: `random` is its number of
    this token, `multiplier` and `amount` are a `Temperature`'s. A token starts a new
    sequence when `restart` is set, after reset, and after `context_length` tokens of a sequence.

    Latency: `cycles(position)` clock edges from a token taken to the next one offered. The next is
    taken when that one has been taken.

    Attributes:
        plan: Model and layout.
        program: What the engine works on.
        latencies: What the prediction needs.
        sequencer, engine, requantize, rotate, hidden, choose, embedding, residual, norms, softmax,
            divide: The units, `rotate` None without rotary positions, `softmax` one a key head.
        i: In, stream of {token, restart}; with `plan.sampling` {token, restart, sample, random,
            multiplier, amount}.
        o: Out, stream of tokens.
    """

    def __init__(self, plan: Plan):
        self.plan, self.program = plan, make_program(plan)
        core = plan.first.attention.core
        numerator_bits = core.softmax.exponential.output_bits
        taps = (plan.head_dim, plan.columns) if plan.head_dim < plan.columns else (plan.columns,)
        slices = max(matrix.slices for matrix in plan.matrices)
        element_bits = max(plan.activation_bits, plan.weight_element_bits)
        self._parameters = DotProductEngine(
            plan.lanes,
            taps,
            max(slices, plan.cache_words),
            max(plan.activation_bits, numerator_bits + 1),
            element_bits + element_bits % 2,
        )
        weights = Operation.PAIRS if plan.pairs else Operation.DOT
        self.engine = EngineDatapath(
            self._parameters, {weights, Operation.DOT, Operation.ACCUMULATE}, **self._weight_bits()
        )
        self.memories = self._make_memories()
        # of two memories a register has the word of the one that is wanted
        self._memory_latency = max(one.latency for one in self.memories) + len(self.memories) - 1
        sum_shape = self.engine.o.lower.shape().elem_shape
        self.requantize = RequantizeRows(plan, sum_shape.width)
        result_bits = self.requantize.widths[-1]
        self.rotate = RotateRows(plan) if plan.rotary else None
        self.hidden = HiddenRows(plan, result_bits)
        self.score = ScoreRows(plan, result_bits) if plan.sampling else None
        self.choose = ChooseRows(plan, plan.model.logits.output.bits if self.score is None else self.score.bits)
        self.embedding = EmbeddingRows(plan)
        self.residual = ResidualRows(plan)
        self.norms = RowNorms(plan.norms, plan.rows, plan.norm_lanes)
        cores = [block.attention.core for block in plan.model.blocks]
        self.softmax = [SoftmaxRows([one.softmax for one in cores], plan.slots) for _ in range(plan.kv_heads)]
        self.divide = DivideRows(cores, plan.slots, plan.context_lanes)
        self.latencies = self._find_latencies()
        self.sequencer = Sequencer(self.program, plan.cache_words, self.latencies.values_delay)
        token = unsigned(ceil_log2(max(plan.model.vocab_size, 2)))
        choice: dict[str, ShapeLike] = {}
        if self.score is not None:
            choice = {"sample": 1, "random": RANDOM_BITS, "multiplier": MULTIPLIER_BITS}
            choice["amount"] = self.score.amount.shape()
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"token": token, "restart": 1, **choice}))),
                "o": Out(stream.Signature(token)),
            }
        )

    def _weight_bits(self) -> dict[str, int]:
        return {"weight_bits": self.plan.weight_bits} if self.plan.pairs else {}

    def _make_memories(self, words: Sequence[int] = ()) -> list[BankedMemory]:
        """Return the memory of weights, keys and values, or that of weights and that of the
        rest.
        """
        plan = self.plan
        width, depth = plan.lanes * plan.activation_bits, plan.cache_depth
        if plan.one_memory:
            begin = plan.weight_depth
            sizes = width, begin + depth, words
            return [BankedMemory(*sizes, bank_words=BANK_WORDS, write_parts=plan.slots, writable_from=begin)]
        weights = BankedMemory(plan.lanes * plan.weight_element_bits, plan.weight_depth, words, bank_words=BANK_WORDS)
        return [weights, BankedMemory(width, depth, bank_words=BANK_WORDS, write_parts=plan.slots)]

    def _find_latencies(self) -> Latencies:
        """Return what follows from the units' latencies."""
        plan, memory = self.plan, self._memory_latency
        norm_words = plan.channels // plan.norm_lanes
        # from a matrix's issue to its requantized results
        results = ISSUE_STAGES + memory + self.engine.latency + self.requantize.latency
        rotate = 0 if self.rotate is None else self.rotate.latency
        # A vector that can be read from cycle t on may be multiplied by a command that is issued
        # `early` cycles before: the memory takes that much longer than the vector.
        early = memory - 1
        self._after_norm = self.norms.latency + norm_words  # from the last word in to the vector
        events = {
            Destination.QUERY: results + rotate + 1 - early,
            Destination.KEY: results + rotate + 1,
            Destination.VALUE: results + rotate + 1,
            Destination.HIDDEN: results + self.hidden.latency + 1 - early,
            Destination.RESIDUAL: results + self.residual.latency + self._after_norm - early,
        }
        softmax = self.softmax[0]
        # The numerators of a word reach the last operand register together with the word.
        wanted = memory - 1  # cycles from a command to its numerators
        values_delay = max(self.engine.lanes_gap - 1, softmax.numerator_latency - wanted)
        self._numerators_wait = values_delay + wanted - softmax.numerator_latency
        sums = ISSUE_STAGES + memory + self.engine.lanes_latency
        denominators = ISSUE_STAGES + wanted - self._numerators_wait + softmax.denominator_latency
        words = plan.kv_channels // plan.context_lanes
        self._context_lead = min(early, words - 1)
        return Latencies(
            events=events,
            scores=memory + self.engine.latency + softmax.ready_latency,
            values_delay=values_delay,
            context=max(sums + self.divide.latency, denominators + self.divide.denominator_latency),
            divide=words - self._context_lead,
            divide_words=words,
            embedding=1  # from the token taken to `start`
            + self.embedding.latency
            + plan.channels // plan.rows
            - 1
            + self.residual.latency
            + self._after_norm
            - early,
            token=results + (0 if self.score is None else self.score.latency) + self.choose.latency + 1,
        )

    def cycles(self, position: int) -> int:
        """Return the clock edges from a token taken to the next one offered.

        Args:
            position: The token's place in its sequence, 0 for the first.
        """
        return self.program.cycles(position, self.latencies)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        plan = self.plan
        m.submodules.sequencer = sequencer = self.sequencer
        m.submodules.engine = engine = self.engine
        m.submodules.requantize = requantize = self.requantize

        # A token at a time.
        busy, start = Signal(), Signal()
        token = data_register(self.i.payload.token)
        position, next_position = (Signal(range(plan.context_length)) for _ in range(2))
        slot, next_slot = (Signal(range(plan.slots)) for _ in range(2))
        row, next_row = (Signal(range(plan.cache_words)) for _ in range(2))
        taken = self.i.valid & self.i.ready
        m.d.comb += [self.i.ready.eq(~busy), sequencer.start.eq(start), sequencer.row.eq(row)]
        m.d.sync += start.eq(taken)
        with m.If(taken):
            m.d.sync += [busy.eq(1), token.eq(self.i.payload.token)]
            m.d.sync += [position.eq(next_position), slot.eq(next_slot), row.eq(next_row)]
            with m.If(self.i.payload.restart):
                m.d.sync += [position.eq(0), slot.eq(0), row.eq(0)]
        with m.If(start):
            m.d.sync += [next_position.eq(position + 1), next_slot.eq(slot + 1), next_row.eq(row)]
            with m.If(slot == plan.slots - 1):
                m.d.sync += [next_slot.eq(0), next_row.eq(row + 1)]
            with m.If(position == plan.context_length - 1):
                m.d.sync += [next_position.eq(0), next_slot.eq(0), next_row.eq(0)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += busy.eq(0)

        # Commands, and what is known of them as they go through.
        memory = self._memory_latency
        command = sequencer.command
        stages = memory + engine.latency
        m.submodules.tags = tags = Delay(command.shape(), stages)
        m.d.comb += [tags.en.eq(1), tags.i.eq(command)]
        issued = tags.taps
        weights = [tag.valid & (tag.work == Work.WEIGHTS) & tag.last for tag in issued]

        events = [Signal(name=event.name.lower()) for event in Event]
        m.d.comb += sequencer.events.eq(Cat(events))
        self._count_down(m, sequencer.issued, events)

        word = self._memories(m, command)
        vector, hidden = self._vectors(m)
        activations = self._operands(m, issued, vector, hidden)
        m.d.comb += [
            engine.word.eq(word),
            engine.activations.eq(activations),
            engine.i.dot.eq(issued[memory].valid & (issued[memory].work != Work.VALUES)),
            engine.i.accumulate.eq(issued[memory].valid & (issued[memory].work == Work.VALUES)),
            engine.i.tap.eq(Mux(issued[memory].work == Work.WEIGHTS, len(engine.parameters.columns) - 1, 0)),
            engine.i.first.eq(issued[memory].first),
            engine.i.last.eq(issued[memory].last),
            engine.i.pairs.eq((issued[memory].work == Work.WEIGHTS) if plan.pairs else 0),
            *([engine.pairs_next.eq(issued[memory - 1].work == Work.WEIGHTS)] if plan.pairs else []),
        ]

        # Results: requantized, then to where they go.
        result = issued[stages]
        groups = plan.lanes // plan.columns
        for number in range(plan.rows):
            sums = engine.o.lower if number < groups else engine.o.upper
            m.d.comb += requantize.i.values[number].eq(sums[number % groups])
        m.d.comb += [
            requantize.soon.eq(weights[stages - requantize.table_stages]),
            requantize.i.valid.eq(weights[stages]),
        ]
        # tags of what comes out of the requantizers, from two cycles before on
        place = data.StructLayout({"valid": 1, "destination": Destination, "layer": result.layer.shape(), "final": 1})
        m.submodules.places = places = Delay(place, requantize.latency)
        m.d.comb += [
            places.en.eq(1),
            places.i.valid.eq(weights[stages]),
            places.i.destination.eq(result.destination),
            places.i.layer.eq(result.layer),
            places.i.final.eq(result.final),
        ]
        here = places.o
        self._queries_and_keys(m, places, position)
        self._feed_forward(m, here)
        self._stream(m, places, start, token, position, events)
        self._attention(m, issued, slot, row, events)

        # The choice.
        m.submodules.choose = choose = self.choose
        logits = here.valid & (here.destination == Destination.LOGITS)
        if self.score is None:
            m.d.comb += [
                *_each(choose.i.values, requantize.o.values),
                choose.i.valid.eq(logits),
                choose.last.eq(here.final),
            ]
        else:
            self._score(m, issued, logits, here.final, taken)
        with m.If(choose.o.valid):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(choose.o.token)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m

    def _score(self, m: Module, issued: list, logits: Value, final: Value, taken: Value) -> None:
        """Add noise to the logits, which the choice then compares."""
        score, choose = self.score, self.choose
        assert score is not None
        m.submodules.score = score
        choice = data_register(self.i.payload)
        with m.If(taken):
            m.d.sync += choice.eq(self.i.payload)
        results = self._memory_latency + self.engine.latency + self.requantize.latency
        if results < score.SOON_CYCLES:
            raise CircuitError(f"{self.plan.lanes} lanes are too few to sample")
        before = issued[results - score.SOON_CYCLES]
        soon = before.valid & before.last & (before.work == Work.WEIGHTS)
        m.d.comb += [
            score.soon.eq(soon & (before.destination == Destination.LOGITS)),
            score.last_soon.eq(before.final),
            score.random.eq(choice.random),
            score.multiplier.eq(choice.multiplier),
            score.amount.eq(choice.amount),
            score.sample.eq(choice.sample),
            *_each(score.i.values, self.requantize.o.values),
            score.i.valid.eq(logits),
            score.last.eq(final),
            *_each(choose.i.values, score.o.values),
            choose.i.valid.eq(score.o.valid),
            choose.last.eq(score.o_last),
        ]

    def _count_down(self, m: Module, issued: data.View, events: list[Signal]) -> None:
        """Let events happen a known time after the last issue that they follow from."""
        latencies = self.latencies

        def later(name: str, condition: Signal, cycles: int) -> Signal:
            # what happens in a cycle can be waited for in the next
            m.submodules[f"{name}_timer"] = timer = Delay(unsigned(1), cycles - 1)
            m.d.comb += [timer.en.eq(1), timer.i.eq(condition)]
            return timer.o

        final = issued.valid & issued.final
        for destination, event in (
            (Destination.QUERY, Event.QUERY),
            (Destination.KEY, Event.KEY),
            (Destination.VALUE, Event.VALUE),
            (Destination.HIDDEN, Event.HIDDEN),
        ):
            ended = final & (issued.work == Work.WEIGHTS) & (issued.destination == destination)
            m.d.comb += events[event].eq(later(event.name.lower(), ended, latencies.events[destination]))
        ended = final & (issued.work == Work.SCORES)
        m.d.comb += events[Event.SCORES].eq(later("scores", ended, latencies.scores))

    def _memories(self, m: Module, command: data.View) -> data.View:
        """Return the word of a command, of the weights or of the cache."""
        plan, memory = self.plan, self._memory_latency
        # Made here, with their contents: who asks for cycles alone does not wait for them.
        memories = self._make_memories(plan.weight_words())
        self._cache = memories[-1]
        word = Signal(data.ArrayLayout(unsigned(self._parameters.element_bits), plan.lanes))
        elements = []
        for name, unit in zip(("words", "cache"), memories, strict=False):
            m.submodules[name] = unit
            m.d.comb += unit.address.eq(command.address)
            bits = len(unit.word) // plan.lanes
            stages = memory - len(memories) + 1 - unit.latency
            m.submodules[f"{name}_wait"] = wait = Delay(unsigned(len(unit.word)), stages)
            m.d.comb += [wait.en.eq(1), wait.i.eq(unit.word)]
            elements.append(data.View(data.ArrayLayout(signed(bits), plan.lanes), wait.o))
        if plan.one_memory:
            m.d.comb += _each(word, elements[0])
            return word
        from_cache = Signal()
        m.submodules.which = which = Delay(unsigned(1), memory - 1)
        m.d.comb += [which.en.eq(1), which.i.eq(command.work != Work.WEIGHTS), from_cache.eq(which.o)]
        chosen = data_register(word.shape(), name="chosen_word")
        for lane in range(plan.lanes):
            weight, held = elements[0][lane], elements[1][lane]
            # pairs keep their bits, single weights their value
            m.d.sync += chosen[lane].eq(Mux(from_cache, held, weight.as_unsigned() if plan.pairs else weight))
        m.d.comb += word.eq(chosen)
        return word

    def _vectors(self, m: Module) -> tuple[list[Signal], list[Signal]]:
        """Make the registers that matrices multiply: norms and contexts; queries and hidden
        rows.
        """
        plan = self.plan
        element = signed(plan.activation_bits)
        self._vector = [data_register(element, name=f"vector_{place}") for place in range(plan.channels)]
        size = max(plan.channels, plan.hidden_slices * plan.columns)
        self._hidden_vector = [data_register(element, name=f"hidden_{place}") for place in range(size)]
        return self._vector, self._hidden_vector

    def _operands(self, m: Module, issued: list, vector: list[Signal], hidden: list[Signal]) -> data.View:
        """Return the activations of a command, together with its word."""
        plan, memory = self.plan, self._memory_latency
        layout = data.ArrayLayout(signed(self._parameters.activation_bits), plan.lanes)
        chosen, operands = data_register(layout), data_register(layout)
        early, late = issued[memory - 2], issued[memory - 1]
        vector_slices, hidden_slices = len(vector) // plan.columns, plan.hidden_slices
        numerators = self._numerators(m)
        for lane in range(plan.lanes):
            column, channel = lane % plan.columns, lane % plan.kv_channels
            parts = [hidden[part * plan.kv_channels + channel] for part in range(plan.passes)]
            slices = [hidden[number * plan.columns + column] for number in range(hidden_slices)]
            whole = [vector[number * plan.columns + column] for number in range(vector_slices)]
            with m.If(early.work != Work.WEIGHTS):
                m.d.sync += chosen[lane].eq(Array(parts)[early.part])
            with m.Elif(early.hidden):
                m.d.sync += chosen[lane].eq(Array(slices)[early.slice])
            with m.Else():
                m.d.sync += chosen[lane].eq(Array(whole)[early.slice])
            slot, head = lane // plan.kv_channels, channel // plan.head_dim
            with m.If(late.work == Work.VALUES):
                m.d.sync += operands[lane].eq(numerators[head][slot])
            with m.Else():
                m.d.sync += operands[lane].eq(chosen[lane])
        return operands

    def _numerators(self, m: Module) -> list[data.View]:
        """Return each head's numerators, of all slots, in time for the last operand register."""
        late = []
        for head, unit in enumerate(self.softmax):
            m.submodules[f"softmax_{head}"] = unit
            m.submodules[f"numerators_{head}"] = wait = Delay(unit.o.numerators.shape(), self._numerators_wait)
            m.d.comb += [wait.en.eq(1), wait.i.eq(unit.o.numerators)]
            late.append(wait.o)
        return late

    def _queries_and_keys(self, m: Module, places: Delay, position: Signal) -> None:
        """Store queries, keys and values, the former two rotated where positions are.

        Values then wait as long as the rotation takes, so that they never overtake a key.
        """
        plan, requantize, here = self.plan, self.requantize, places.o
        element = signed(plan.activation_bits)
        stages = 0 if self.rotate is None else self.rotate.latency
        place = data.StructLayout({"query": 1, "key": 1, "value": 1, "final": 1, "layer": here.layer.shape()})
        m.submodules.projected = projected = Delay(place, stages)
        m.submodules.projected_rows = rows = Delay(data.ArrayLayout(element, plan.rows), stages)
        m.d.comb += [
            projected.en.eq(1),
            projected.i.query.eq(here.valid & (here.destination == Destination.QUERY)),
            projected.i.key.eq(here.valid & (here.destination == Destination.KEY)),
            projected.i.value.eq(here.valid & (here.destination == Destination.VALUE)),
            projected.i.final.eq(here.final),
            projected.i.layer.eq(here.layer),
            rows.en.eq(1),
            *_each(rows.i, requantize.o.values),
        ]
        result = projected.o
        values = Signal(data.ArrayLayout(element, plan.rows))
        m.d.comb += values.eq(rows.o)
        if self.rotate is not None:
            m.submodules.rotate = rotate = self.rotate
            soon = places.taps[requantize.latency - rotate.table_stages]
            turned = (soon.destination == Destination.QUERY) | (soon.destination == Destination.KEY)
            m.d.comb += [
                rotate.soon.eq(soon.valid & turned),
                rotate.position.eq(position),
                rotate.i.valid.eq(projected.i.query | projected.i.key),
                *_each(rotate.i.values, requantize.o.values),
                rotate.key.eq(projected.i.key),
                rotate.layer.eq(here.layer),
            ]
            with m.If(~result.value):
                m.d.comb += _each(values, rotate.o.values)
        self._store(m, "query", self._hidden_vector[: plan.channels], result.query, result.final, values, plan.rows)
        # A key or a value is assembled, then written in one cycle into its slot.
        self._assembly = [data_register(element, name=f"assembly_{number}") for number in range(plan.kv_channels)]
        stored = result.key | result.value
        self._store(m, "assembly", self._assembly, stored, result.final, values, plan.rows)
        whole, is_value, layer = Signal(), Signal(), data_register(result.layer.shape())
        m.d.sync += [whole.eq(stored & result.final), is_value.eq(result.value), layer.eq(result.layer)]
        self._cache_write = (whole, is_value, layer)

    def _store(
        self, m: Module, name: str, vector: list[Signal], write: Signal, final: Signal, values: data.View, count: int
    ) -> None:
        """Write `count` values a cycle into a vector, from its beginning until `final`."""
        chunks = -(-len(vector) // count)
        chunk = Signal(range(chunks), name=f"{name}_chunk")
        with m.If(write):
            m.d.sync += chunk.eq(Mux(final, 0, chunk + 1))
            with m.Switch(chunk):
                for number in range(chunks):
                    with m.Case(number):
                        places = vector[number * count : (number + 1) * count]
                        m.d.sync += [place.eq(value) for place, value in zip(places, values, strict=False)]

    def _next_chunk(self, m: Module, name: str, write: Value, chunks: int) -> Signal:
        """Return which of so many chunks is written, one after the other and again from the
        first.
        """
        chunk = Signal(range(chunks), name=name)
        with m.If(write):
            m.d.sync += chunk.eq(Mux(chunk == chunks - 1, 0, chunk + 1))
        return chunk

    def _feed_forward(self, m: Module, here: data.View) -> None:
        """Activate the hidden row and store it."""
        m.submodules.hidden = unit = self.hidden
        valid = here.valid & (here.destination == Destination.HIDDEN)
        m.d.comb += [
            unit.i.valid.eq(valid),
            *_each(unit.i.values, self.requantize.o.values),
            unit.layer.eq(here.layer),
        ]
        m.submodules.hidden_final = final = Delay(unsigned(1), unit.latency)
        m.d.comb += [final.en.eq(1), final.i.eq(here.final)]
        self._store(m, "hidden", self._hidden_vector, unit.o.valid, final.o, unit.o.values, unit.count)

    def _stream(
        self,
        m: Module,
        places: Delay,
        start: Signal,
        token: Signal,
        position: Signal,
        events: list[Signal],
    ) -> None:
        """Embed, add to the residual stream, normalize into the vector."""
        plan, here = self.plan, places.o
        soon = places.taps[self.requantize.latency - ResidualRows.READ_STAGES]
        m.submodules.embedding, m.submodules.residual = embedding, residual = self.embedding, self.residual
        m.submodules.norms = norms = self.norms
        m.d.comb += [
            embedding.start.eq(start),
            embedding.token.eq(token),
            embedding.position.eq(position),
            residual.load.eq(embedding.o),
            residual.soon.eq(soon.valid & (soon.destination == Destination.RESIDUAL)),
            residual.i.valid.eq(here.valid & (here.destination == Destination.RESIDUAL)),
            *_each(residual.i.values, self.requantize.o.values),
        ]
        number = Signal(range(len(plan.norms)))  # of the norm
        ended = residual.o.valid & residual.last
        with m.If(ended):
            m.d.sync += number.eq(Mux(number == len(plan.norms) - 1, 0, number + 1))
        m.d.comb += [
            norms.i.valid.eq(residual.o.valid),
            *_each(norms.i.data, residual.o.values),
            norms.i.last.eq(residual.last),
            norms.i.norm.eq(number),
        ]
        m.submodules.normalized_timer = timer = Delay(unsigned(1), self._after_norm - self._memory_latency)
        m.d.comb += [timer.en.eq(1), timer.i.eq(ended), events[Event.NORMALIZED].eq(timer.o)]

    def _attention(self, m: Module, issued: list, slot: Signal, row: Signal, events: list[Signal]) -> None:
        """Scores to the softmax units, sums to the division, contexts into the vector; write keys
        and values.
        """
        plan, engine = self.plan, self.engine
        result = issued[self._memory_latency + engine.latency]
        for head in range(plan.kv_heads):
            unit = self.softmax[head]
            m.d.comb += [
                unit.start.eq(self.sequencer.begin_values),
                unit.i.valid.eq(result.valid & (result.work == Work.SCORES)),
                unit.i.last.eq(result.final),
                unit.i.count.eq(Mux(result.final, slot + 1, plan.slots)),
                unit.i.layer.eq(result.layer),
            ]
            m.d.comb += [
                unit.i.scores[place].eq(engine.o.lower[place * plan.kv_heads + head]) for place in range(plan.slots)
            ]
        m.submodules.divide = divide = self.divide
        summed = issued[self._memory_latency + engine.lanes_latency]
        m.d.comb += [
            divide.i.valid.eq(engine.o_lanes.valid),
            *_each(divide.i.sums, engine.o_lanes.sums),
            divide.i.layer.eq(summed.layer),
            divide.i_denominators.valid.eq(self.softmax[0].o_denominator.valid),
        ]
        m.d.comb += [
            divide.i_denominators.values[head].eq(unit.o_denominator.value) for head, unit in enumerate(self.softmax)
        ]
        # Contexts of all passes fill the vector; the event comes before the last of them.
        contexts, normalized = divide.o, self.norms.o
        words = plan.channels // plan.context_lanes
        done = self._next_chunk(m, "context_chunk", contexts.valid, words)
        m.d.comb += events[Event.CONTEXT].eq(contexts.valid & (done == words - 1 - self._context_lead))
        norm_words = plan.channels // plan.norm_lanes
        into = self._next_chunk(m, "norm_chunk", normalized.valid, norm_words)
        for place, register in enumerate(self._vector):
            chunk, lane = divmod(place, plan.norm_lanes)
            with m.If(normalized.valid & (into == chunk)):
                m.d.sync += register.eq(normalized.data[lane])
            chunk, lane = divmod(place, plan.context_lanes)
            with m.If(contexts.valid & (done == chunk)):
                m.d.sync += register.eq(contexts.data[lane])

        whole, is_value, layer = self._cache_write
        cache = self._cache
        base = Array(
            [plan.cache_address(number, values=values) for number in range(plan.layers) for values in (False, True)]
        )[Cat(is_value, layer)]
        word = Cat(*self._assembly)
        m.d.comb += [
            cache.write_address.eq(base + row),
            cache.write_data.eq(word.replicate(plan.slots)),
            cache.write_enable.eq(Mux(whole, 1 << slot, 0)),
        ]


def _each(target: data.View, source: data.View) -> list:
    """Assign an array's elements, whose widths may differ from the source's."""
    return [place.eq(value) for place, value in zip(target, source, strict=True)]
