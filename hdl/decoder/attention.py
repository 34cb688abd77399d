# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its schedule)
"""The attention accelerator: causal multi-head self-attention with its key-value cache, one token
at a time.

One row of C multipliers does all the work in two modes. *Dot product*: C activations against one
row of weights, or of C query elements against one cached key row, whose adder trees are tapped at
the head size so that every head's score appears at once. *Accumulate*: each lane keeps its own sum,
so that a cached value row, weighted by its head's exponential, is added in one cycle.

    vector ────────┐                 ┌─ trees of d lanes ─ scores ─ softmax units ─ numerators ──┐
    query ─────────┼─ C multipliers ─┼─ tree of C lanes ─ requantize ─ key, value, query, output │
    ┌─ numerators ─┘        │        └─ C lane sums ─ × reciprocal of the denominator ─ vector   │
    └───────────────────────┼────────────────────────────────────────────────────────────────────┘
              weights, keys, values: block RAM words of C elements
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
from amaranth.hdl import Array, Assert, Cat, Format, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint
from fixedpoint.packing import pack_rows

from ..cores.softmax import SoftmaxNumerators
from ..errors import CircuitError
from ..parts.arithmetic import shape_of
from ..parts.division import SoftmaxDivision
from ..parts.dot_product import AdderTree, Delay, LaneProducts
from ..parts.reciprocal import Reciprocal
from ..parts.registers import data_register
from ..parts.requantize import RowRequantize
from .schedule import Operand, Result, Schedule, Source, Step


def why_unsupported(parameters: fixedpoint.Attention) -> str:
    """Return what of an attention this circuit has no part for; empty where it has all."""
    reasons = ["it has rotary positions"] if parameters.rotations is not None else []
    if parameters.core.num_kv_heads != parameters.num_heads:
        reasons.append(f"{parameters.num_heads} query heads share {parameters.core.num_kv_heads} key and value heads")
    return " and ".join(reasons)


class Attention(wiring.Component):
    """`fixedpoint.Attention` as a circuit: normalized tokens in, projected attention results out.

    Equation: `fixedpoint.Attention.compute_stream`. A token starts a new sequence when `restart`
    is set on its first element, after reset, and after `context_length` tokens of a sequence.

    Throughput: `schedule.cycles(n)` cycles for the n-th token of a sequence, from its first element
    taken to the next token's. Latency: `output_latency` clock edges more to its last result.
    Resources: C + 2 hard multipliers; block RAM for 4·C words of weights and 2·context_length words
    of keys and values, each word C elements wide.

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762.

    Attributes:
        parameters: Weights, formats and sizes.
        schedule: The order of work of one token.
        i: In, stream of {data: input format, restart}: C elements a token.
        o: Out, stream of {data: residual format, last}: C elements a token, `last` on the C-th.

    Internals:
        Results wait in a FIFO of one token; the next token is worked on meanwhile, and stops before
        its own results only if some of these have not been taken. So nothing else ever has to
        stall.
    """

    def __init__(self, parameters: fixedpoint.Attention):
        if not isinstance(parameters, fixedpoint.Attention):
            raise TypeError(f"parameters must be a fixedpoint.Attention, not {type(parameters).__name__}")
        if reason := why_unsupported(parameters):
            raise CircuitError(f"there is no circuit of this attention: {reason}")
        for name in ("key", "value", "output"):  # all four share one memory's words
            width = getattr(parameters, name).weight_bits
            if width != parameters.query.weight_bits:
                raise CircuitError(
                    f"this circuit has one width of attention weights; {name} has {width} bits, query {parameters.query.weight_bits}"
                )
        softmax = parameters.softmax
        self.parameters = parameters
        bits = parameters.query.input.bits
        operand_bits = max(bits, softmax.exponential.output_bits + 1)
        second_bits = max(bits, parameters.query.weight_bits)
        channels, heads, head_dim = parameters.embed_dim, parameters.num_heads, parameters.head_dim
        product_bits = operand_bits + second_bits
        self._products = LaneProducts(channels, operand_bits, second_bits)
        self._head_trees = [AdderTree(head_dim, product_bits) for _ in range(heads)]
        self._tree = AdderTree(heads, product_bits + self._head_trees[0].latency)
        self._layers = (parameters.key, parameters.value, parameters.query, parameters.output)
        self._requantize = RowRequantize(self._layers)
        self._numerators = [SoftmaxNumerators(softmax) for _ in range(heads)]
        self._reciprocal = Reciprocal(parameters.reciprocal, softmax.denominator_bits)
        self._divide = SoftmaxDivision(parameters)
        self.schedule = self._make_schedule()
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.query.input), "restart": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": shape_of(parameters.output.output), "last": 1}))),
            }
        )

    # Clock edges from a token's last scheduled cycle to the transfer of its last result out of the
    # FIFO.
    output_latency = 1

    def cycles(self, positions: Iterable[int]) -> int:
        """Return the clock edges from the first element taken to the last result given, without
        stalls.

        Args:
            positions: Each token's place in its sequence, 0 for the first.
        """
        return sum(self.schedule.cycles(position + 1) for position in positions) + self.output_latency

    @property
    def score_stages(self) -> int:
        """Stages from a key's address to its scores: memory, multipliers, trees of d lanes."""
        return 1 + self._products.latency + self._head_trees[0].latency

    @property
    def row_stages(self) -> int:
        """Stages from a weight row's address to its requantized result."""
        return self.score_stages + self._tree.latency + self._requantize.latency

    def _make_schedule(self) -> Schedule:
        channels = self.parameters.embed_dim
        # memory, multipliers; the lane sums are there one cycle later
        weigh_stages = 1 + self._products.latency
        project = partial(Step, operand=Operand.VECTOR, source=Source.WEIGHTS, count=channels)
        return Schedule(
            (
                Step("take the token", Operand.NONE, Source.NONE, Result.NONE, channels),
                project("project key", result=Result.KEY),
                project("project value", result=Result.VALUE),
                project("project query", result=Result.QUERY, drain=self.row_stages),
                Step("scores", Operand.QUERY, Source.KEYS, Result.SCORES, None),
                Step(
                    "weigh values",
                    Operand.NUMERATORS,
                    Source.VALUES,
                    Result.CONTEXT,
                    None,
                    wait=self.score_stages + self._numerators[0].latency - 1,
                    drain=weigh_stages,
                ),
                Step(
                    "divide",
                    Operand.NONE,
                    Source.NONE,
                    Result.NONE,
                    channels,
                    # The first denominator is there one cycle after the last numerator was taken,
                    # its reciprocal is computed while the lane sums drain, and one more cycle sets
                    # it before the multiplier.
                    wait=max(0, 1 + self._reciprocal.latency - weigh_stages),
                    drain=1 + self._divide.latency,
                ),
                project("project output", result=Result.OUTPUT, drain=self.row_stages),
            )
        )

    def weight_words(self) -> list[int]:
        """Return the weight memory: rows of key, value, query, output, element 0 in low bits."""
        return pack_rows(np.concatenate([layer.weight for layer in self._layers]), self.parameters.query.weight_bits)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters, steps = self.parameters, self.schedule.steps
        channels, heads, head_dim = parameters.embed_dim, parameters.num_heads, parameters.head_dim
        context_length = parameters.context_length
        bits = parameters.query.input.bits
        element = signed(bits)

        # Memories.
        weight_word = data.ArrayLayout(signed(parameters.query.weight_bits), channels)
        init = [weight_word.from_bits(word) for word in self.weight_words()]
        m.submodules.weights = weights = memory.Memory(
            shape=weight_word, depth=len(init), init=init, attrs={"ram_style": "block"}
        )
        cache_word = data.ArrayLayout(element, channels)
        token_bits = ceil_log2(context_length)
        m.submodules.cache = cache = memory.Memory(  # keys in the lower half, values in the upper
            shape=cache_word, depth=2 << token_bits, init=[], attrs={"ram_style": "block"}
        )
        weight_port, cache_port, cache_write = weights.read_port(), cache.read_port(), cache.write_port()

        # Units.
        m.submodules.products = products = self._products
        for head in range(heads):
            m.submodules[f"tree_{head}"] = self._head_trees[head]
            m.submodules[f"numerators_{head}"] = self._numerators[head]
        m.submodules.tree = tree = self._tree
        m.submodules.requantize = requantize = self._requantize
        m.submodules.reciprocal = reciprocal = self._reciprocal
        m.submodules.divide = divide = self._divide
        # Results wait here, so that a consumer that stalls never stalls the pipeline.
        m.submodules.results = results = SyncFIFOBuffered(width=len(self.o.payload.as_value()), depth=channels + 1)

        # Registers of vectors.
        vector = [data_register(element, name=f"vector_{place}") for place in range(channels)]
        assembly = [
            data_register(element, name=f"assembly_{place}") for place in range(channels)
        ]  # a key, a value, then the query
        sums = [data_register(signed(parameters.weighted_sum_bits), name=f"sum_{place}") for place in range(channels)]
        position = Signal(range(context_length))
        next_position = Signal(range(context_length))

        # Sequencer: a step, its issues, its drain.
        step = Signal(range(len(steps)))
        index = Signal(range(max(channels, context_length)))
        row = Signal(range(len(init)))
        drain = Signal(range(max(one.drain for one in steps) + 1))
        draining = Signal()
        operand, source, result = Signal(Operand), Signal(Source), Signal(Result)
        final_index = Signal.like(index)
        drain_cycles = Signal.like(drain)
        with m.Switch(step):
            for number, one in enumerate(steps):
                with m.Case(number):
                    m.d.comb += [
                        operand.eq(one.operand),
                        source.eq(one.source),
                        result.eq(one.result),
                        final_index.eq(position if one.count is None else one.count - 1),
                        drain_cycles.eq(one.drain),
                    ]
        names = [one.name for one in steps]
        taking = (step == names.index("take the token")) & ~draining
        dividing = (step == names.index("divide")) & ~draining

        # A cycle late, which does not matter: nothing is written between two tokens' output steps.
        results_gone = Signal()
        m.d.sync += results_gone.eq(results.level == 0)
        available = Signal()  # the step's own operands, or the room for its results, are there
        issue = Signal()
        scale_valid = Signal()
        m.d.comb += [
            available.eq(1),
            issue.eq(available & ~draining),
            self.i.ready.eq(taking),
        ]
        with m.If(taking):
            m.d.comb += available.eq(self.i.valid)
        with m.Elif(operand == Operand.NUMERATORS):
            # All units work in lock step.
            m.d.comb += available.eq(self._numerators[0].o.valid)
            for unit in self._numerators[1:]:
                m.d.sync += Assert(unit.o.valid == self._numerators[0].o.valid, "softmax units lost their step")
        with m.Elif(dividing):
            m.d.comb += available.eq(scale_valid)
        with m.Elif(result == Result.OUTPUT):
            m.d.comb += available.eq((index != 0) | results_gone)

        last_issue = index == final_index
        next_step = Signal()
        m.d.comb += next_step.eq((issue & last_issue & (drain_cycles == 0)) | (draining & (drain == 1)))
        with m.If(issue):
            m.d.sync += index.eq(index + 1)
            with m.If(last_issue):
                m.d.sync += [index.eq(0), drain.eq(drain_cycles), draining.eq(drain_cycles != 0)]
            with m.If(source == Source.WEIGHTS):
                m.d.sync += row.eq(row + 1)
        with m.If(draining):
            m.d.sync += drain.eq(drain - 1)
        with m.If(next_step):
            m.d.sync += [draining.eq(0), step.eq(step + 1)]
            with m.If(step == len(steps) - 1):
                m.d.sync += [step.eq(0), row.eq(0), next_position.eq(position + 1)]
                with m.If(position == context_length - 1):
                    m.d.sync += next_position.eq(0)

        # Take a token.
        with m.If(taking & issue):
            m.d.sync += [here.eq(after) for here, after in zip(vector, [*vector[1:], self.i.payload.data], strict=True)]
            with m.If(index == 0):
                m.d.sync += position.eq(next_position)
                with m.If(self.i.payload.restart):
                    m.d.sync += position.eq(0)

        # What is in the pipeline, beside the numbers.
        tag = data.StructLayout({"result": Result, "first": 1, "last": 1, "source": Source, "row": row.shape()})
        m.submodules.tags = tags = Delay(tag, self.row_stages)
        m.d.comb += [tags.en.eq(1), tags.i.first.eq(index == 0), tags.i.last.eq(last_issue), tags.i.row.eq(row)]
        with m.If(issue):
            m.d.comb += [tags.i.result.eq(result), tags.i.source.eq(source)]
        read = tags.taps[1]
        multiplied = tags.taps[1 + products.latency]
        scored = tags.taps[self.score_stages]
        summed = tags.taps[self.score_stages + tree.latency]

        # Multiply.
        operands = data_register(data.ArrayLayout(products.a.shape().elem_shape, channels))
        with m.Switch(operand):
            with m.Case(Operand.VECTOR):
                m.d.sync += [operands[lane].eq(vector[lane]) for lane in range(channels)]
            with m.Case(Operand.QUERY):
                m.d.sync += [operands[lane].eq(assembly[lane]) for lane in range(channels)]
            with m.Case(Operand.NUMERATORS):
                for lane in range(channels):
                    m.d.sync += operands[lane].eq(self._numerators[lane // head_dim].o.payload.numerator)
        m.d.comb += [
            weight_port.en.eq(1),
            weight_port.addr.eq(row),
            cache_port.en.eq(1),
            cache_port.addr.eq(Cat(index[:token_bits], source == Source.VALUES)),
            products.en.eq(1),
            products.a.eq(operands),
        ]
        for lane in range(channels):
            m.d.comb += products.b[lane].eq(cache_port.data[lane])
            with m.If(read.source == Source.WEIGHTS):
                m.d.comb += products.b[lane].eq(weight_port.data[lane])
        for unit in self._numerators:
            # Whenever there is a numerator in this step, it is issued.
            m.d.comb += unit.o.ready.eq((operand == Operand.NUMERATORS) & ~draining)

        # Dot product: trees of a head's lanes, then a tree of heads.
        for head, unit in enumerate(self._head_trees):
            m.d.comb += unit.en.eq(1)
            m.d.comb += [unit.i[lane].eq(products.o[head * head_dim + lane]) for lane in range(head_dim)]
            m.d.comb += tree.i[head].eq(unit.o)
        m.d.comb += tree.en.eq(1)

        # Scores go to the softmax units, which keep up by construction.
        for head, unit in enumerate(self._numerators):
            m.d.comb += [
                unit.i.valid.eq(scored.result == Result.SCORES),
                unit.i.payload.score.eq(self._head_trees[head].o),
                unit.i.payload.last.eq(scored.last),
            ]
            m.d.sync += Assert(~unit.i.valid | unit.i.ready, Format("softmax unit {} refused a score", head))

        # Accumulate: each lane keeps its own sum, cleared while the next token arrives.
        with m.If(taking):
            m.d.sync += [lane_sum.eq(0) for lane_sum in sums]
        with m.Elif(multiplied.result == Result.CONTEXT):
            m.d.sync += [lane_sum.eq(lane_sum + products.o[lane]) for lane, lane_sum in enumerate(sums)]

        # Projections: bias, scale, saturate; then to the cache, the query, or out.
        m.d.comb += [requantize.en.eq(1), requantize.i.eq(tree.o), requantize.row.eq(summed.row)]
        projected = (tags.o.result == Result.KEY) | (tags.o.result == Result.VALUE) | (tags.o.result == Result.QUERY)
        with m.If(projected):
            m.d.sync += [
                here.eq(after) for here, after in zip(assembly, [*assembly[1:], requantize.o[:bits]], strict=True)
            ]
        # One cycle later the assembly is whole; the next vector's first element may be shifting in
        # as it is written.
        m.d.sync += [
            cache_write.en.eq(tags.o.last & ((tags.o.result == Result.KEY) | (tags.o.result == Result.VALUE))),
            cache_write.addr.eq(Cat(position[:token_bits], tags.o.result == Result.VALUE)),
        ]
        m.d.comb += [cache_write.data[lane].eq(assembly[lane]) for lane in range(channels)]
        m.d.comb += [
            results.w_en.eq(tags.o.result == Result.OUTPUT),
            results.w_data.eq(Cat(requantize.o, tags.o.last)),
            self.o.valid.eq(results.r_rdy),
            self.o.payload.eq(results.r_data),
            results.r_en.eq(self.o.ready),
        ]

        # Divide: one reciprocal a head, then its lanes; the next head's reciprocal is computed
        # meanwhile.
        asked = Signal(range(heads + 1))
        scale = Signal.like(reciprocal.o.payload)
        in_head = Signal(range(head_dim))
        head_done = dividing & issue & (in_head == head_dim - 1)
        m.d.comb += reciprocal.o.ready.eq(~scale_valid | head_done)
        with m.If(reciprocal.o.valid & reciprocal.o.ready):
            m.d.sync += [scale.eq(reciprocal.o.payload), scale_valid.eq(1)]
        with m.Elif(head_done):
            m.d.sync += scale_valid.eq(0)
        with m.Switch(asked):
            for head, unit in enumerate(self._numerators):
                with m.Case(head):
                    m.d.comb += [
                        reciprocal.i.valid.eq(unit.o_denominator.valid),
                        reciprocal.i.payload.eq(unit.o_denominator.payload),
                        unit.o_denominator.ready.eq(reciprocal.i.ready),
                    ]
        with m.If(reciprocal.i.valid & reciprocal.i.ready):
            m.d.sync += asked.eq(asked + 1)
        with m.If(taking):
            m.d.sync += asked.eq(0)
        # The lane is picked in two steps, with a register between: inside every head, then the
        # head.
        head = Signal(range(heads))
        picked = [
            data_register(signed(parameters.weighted_sum_bits), name=f"picked_{number}") for number in range(heads)
        ]
        picked_head = Signal.like(head)
        picked_scale = Signal.like(scale)
        for number, register in enumerate(picked):
            m.d.sync += register.eq(Array(sums[number * head_dim : (number + 1) * head_dim])[in_head])
        m.d.sync += [picked_head.eq(head), picked_scale.eq(scale)]
        m.d.comb += [
            divide.weighted.eq(Array(picked)[picked_head]),
            divide.mantissa.eq(picked_scale.mantissa),
            divide.exponent.eq(picked_scale.exponent),
        ]
        with m.If(dividing & issue):
            m.d.sync += in_head.eq(in_head + 1)
            with m.If(head_done):
                m.d.sync += [in_head.eq(0), head.eq(head + 1)]
        with m.If(taking):
            m.d.sync += head.eq(0)
        m.submodules.divided = divided = Delay(unsigned(1), 1 + divide.latency)
        m.d.comb += [divided.en.eq(1), divided.i.eq(dividing & issue)]
        with m.If(divided.o):
            m.d.sync += [here.eq(after) for here, after in zip(vector, [*vector[1:], divide.o], strict=True)]
        return m
