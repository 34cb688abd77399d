# amaranth: UnusedElaboratable=no
# (units may be built only to ask for their latencies)
"""The units of a decoder machine, and what follows from their latencies."""

from collections.abc import Sequence

from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation

from ..cores.engine_datapath import EngineDatapath
from ..parts.banked_memory import BankedMemory
from .choose_rows import ChooseRows
from .divide import DivideRows
from .hidden_rows import HiddenRows
from .plan import Plan
from .program import Destination, Latencies
from .requantize_rows import RequantizeRows
from .residual import EmbeddingRows, ResidualRows
from .rotate_rows import RotateRows
from .row_norms import RowNorms
from .score_rows import ScoreRows
from .softmax_rows import SoftmaxRows

ISSUE_STAGES = 1  # from an issue to its command
BANK_WORDS = 1024  # of the memory's banks: half as many to choose from as with 512


class Units:
    """One unit of each kind, which serves all layers.

    Attributes:
        plan: Model and layout.
        parameters: The engine's sizes.
        memories: That of weights, keys and values, or one of weights and one of the rest.
        memory_latency: Cycles from a command to its word.
        engine, requantize, hidden, choose, embedding, residual, norms, divide: One unit of each.
        rotate: None without rotary positions.
        score: None without sampling.
        softmax: One a key head.
        latencies: What the prediction needs.
        after_norm: Cycles from a row's last word into the norms to the vector.
        numerators_wait: Cycles that numerators wait for their word of values.
        context_lead, room_lead: Words of contexts that the events are ahead of a row's last one.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        core = plan.first.attention.core
        numerator_bits = core.softmax.exponential.output_bits
        taps = (plan.head_dim, plan.columns) if plan.head_dim < plan.columns else (plan.columns,)
        slices = max(matrix.slices for matrix in plan.matrices)
        element_bits = max(plan.activation_bits, plan.weight_element_bits)
        self.parameters = DotProductEngine(
            plan.lanes,
            taps,
            max(slices, plan.cache_words),
            max(plan.activation_bits, numerator_bits + 1),
            element_bits + element_bits % 2,
        )
        weights = Operation.PAIRS if plan.pairs else Operation.DOT
        self.engine = EngineDatapath(
            self.parameters, {weights, Operation.DOT, Operation.ACCUMULATE}, **self._weight_bits()
        )
        self.memories = self.make_memories()
        # of two memories a register has the word of the one that is wanted
        self.memory_latency = max(one.latency for one in self.memories) + len(self.memories) - 1
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
        self.divide = DivideRows(cores, plan.slots, plan.context_lanes, sequences=plan.sequences)
        self.latencies = self._find_latencies()

    def _weight_bits(self) -> dict[str, int]:
        return {"weight_bits": self.plan.weight_bits} if self.plan.pairs else {}

    def make_memories(self, words: Sequence[int] = ()) -> list[BankedMemory]:
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
        plan, memory = self.plan, self.memory_latency
        norm_words = plan.channels // plan.norm_lanes
        # from a matrix's issue to its requantized results
        results = ISSUE_STAGES + memory + self.engine.latency + self.requantize.latency
        rotate = 0 if self.rotate is None else self.rotate.latency
        # A vector that can be read from cycle t on may be multiplied by a command that is issued
        # `early` cycles before: the memory takes that much longer than the vector.
        early = memory - 1
        self.after_norm = self.norms.latency + norm_words  # from the last word in to the vector
        events = {
            Destination.QUERY: results + rotate + 1 - early,
            Destination.KEY: results + rotate + 1,
            Destination.VALUE: results + rotate + 1,
            Destination.HIDDEN: results + self.hidden.latency + 1 - early,
            Destination.RESIDUAL: results + self.residual.latency + self.after_norm - early,
        }
        softmax = self.softmax[0]
        # The numerators of a word reach the last operand register together with the word.
        wanted = memory - 1  # cycles from a command to its numerators
        values_delay = max(self.engine.lanes_gap - 1, softmax.numerator_latency - wanted)
        self.numerators_wait = values_delay + wanted - softmax.numerator_latency
        sums = ISSUE_STAGES + memory + self.engine.lanes_latency
        denominators = ISSUE_STAGES + wanted - self.numerators_wait + softmax.denominator_latency
        words = plan.kv_channels // plan.context_lanes
        self.context_lead = min(early, words - 1)
        # The third row's sums or denominators come in the cycle after the first's last word has
        # gone to the multipliers, or later.
        self.room_lead = min(words - 1, self.divide.output_stages - 1 + min(sums, denominators))
        embedding_words = plan.channels // plan.rows
        return Latencies(
            events=events,
            scores=memory + self.engine.latency + softmax.ready_latency,
            values_delay=values_delay,
            context=sums + self.divide.latency,
            divide=words - self.context_lead,
            divide_words=words,
            denominators=denominators + self.divide.denominator_latency,
            divide_heads=plan.kv_heads,
            room=words - self.room_lead,
            embedding=1  # from the token taken to `start`
            + self.embedding.latency
            + embedding_words
            - 1
            + self.residual.latency
            + self.after_norm
            - early,
            next_embedding=self.embedding.latency + embedding_words + self.residual.latency,
            token=results + (0 if self.score is None else self.score.latency) + self.choose.latency + 1,
        )
