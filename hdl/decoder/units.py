# amaranth: UnusedElaboratable=no
# (units may be built only to ask for their latencies)
"""The units of a decoder machine, and what follows from their latencies."""

from collections.abc import Mapping, Sequence

from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation

from ..cores.engine_datapath import EngineDatapath
from ..parts.banked_memory import BankedMemory
from .choose_rows import ChooseRows
from .divide import DivideRows
from .hidden_rows import HiddenRows
from .layout import Layout
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


class AttentionUnits:
    """The units of attention, one of each kind, which serves all layers.

    Attributes:
        plan: Model and layout.
        memories: That of weights, keys and values, or one of weights and one of the rest.
        memory_latency: Cycles from a command to its word.
        engine, requantize, divide: One unit of each.
        rotate: None without rotary positions.
        softmax: One a key head.
        result_latency: Cycles from a matrix's issue to its requantized results.
        early: Cycles from a command's issue to a vector that it may multiply.
        numerators_wait: Cycles that numerators wait for their word of values.
        context_lead, room_lead: Words of contexts that the events are ahead of a row's last one.
    """

    plan: Layout
    latencies: Latencies

    def __init__(self, plan: Layout):
        self.plan = plan
        core = plan.attentions[0].core
        numerator_bits = core.softmax.exponential.output_bits
        taps = (plan.head_dim, plan.columns) if plan.head_dim < plan.columns else (plan.columns,)
        slices = max(matrix.slices for matrix in plan.matrices)
        element_bits = max(plan.activation_bits, plan.weight_element_bits)
        sizes = DotProductEngine(
            plan.lanes,
            taps,
            max(slices, plan.cache_words),
            max(plan.activation_bits, numerator_bits + 1),
            element_bits + element_bits % 2,
        )
        weights = Operation.PAIRS if plan.pairs else Operation.DOT
        self.engine = EngineDatapath(sizes, {weights, Operation.DOT, Operation.ACCUMULATE}, **self._weight_bits())
        self.memories = self.make_memories()
        # of two memories a register has the word of the one that is wanted
        self.memory_latency = max(one.latency for one in self.memories) + len(self.memories) - 1
        sum_shape = self.engine.o.lower.shape().elem_shape
        self.requantize = RequantizeRows(plan, sum_shape.width)
        self.rotate = RotateRows(plan) if plan.rotary else None
        cores = [attention.core for attention in plan.attentions]
        self.softmax = [SoftmaxRows([one.softmax for one in cores], plan.slots) for _ in range(plan.kv_heads)]
        self.divide = DivideRows(cores, plan.slots, plan.context_lanes, sequences=plan.sequences)
        self.result_latency = ISSUE_STAGES + self.memory_latency + self.engine.latency + self.requantize.latency
        # The memory takes that much longer than the vector.
        self.early = self.memory_latency - 1

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

    def _latencies(self, events: Mapping[Destination, int], **others: int) -> Latencies:
        """Return attention's latencies, with those of what surrounds it."""
        plan, memory, early = self.plan, self.memory_latency, self.early
        projected = self.result_latency + (0 if self.rotate is None else self.rotate.latency) + 1
        own = {
            Destination.QUERY: projected - early,
            Destination.KEY: projected,
            Destination.VALUE: projected,
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
        return Latencies(
            events={**own, **events},
            scores=memory + self.engine.latency + softmax.ready_latency,
            values_delay=values_delay,
            context=sums + self.divide.latency,
            divide=words - self.context_lead,
            divide_words=words,
            denominators=denominators + self.divide.denominator_latency,
            divide_heads=plan.kv_heads,
            room=words - self.room_lead,
            **others,
        )


class Units(AttentionUnits):
    """The units of a whole decoder, one of each kind.

    Attributes:
        hidden, score, choose, embedding, residual, norms: The units around attention, `score` None
            without sampling.
        latencies: What the prediction needs.
        after_norm: Cycles from a row's last word into the norms to the vector.
    """

    plan: Plan

    def __init__(self, plan: Plan):
        super().__init__(plan)
        result_bits = self.requantize.widths[-1]
        self.hidden = HiddenRows(plan, result_bits)
        self.score = ScoreRows(plan, result_bits) if plan.sampling else None
        self.choose = ChooseRows(plan, plan.model.logits.output.bits if self.score is None else self.score.bits)
        self.embedding = EmbeddingRows(plan)
        self.residual = ResidualRows(plan)
        self.norms = RowNorms(plan.norms, plan.rows, plan.norm_lanes)
        # from the last word in to the vector
        self.after_norm = self.norms.latency + plan.channels // plan.norm_lanes
        results, early, words = self.result_latency, self.early, plan.channels // plan.rows
        normalized = self.residual.latency + self.after_norm - early
        self.latencies = self._latencies(
            {
                Destination.HIDDEN: results + self.hidden.latency + 1 - early,
                Destination.RESIDUAL: results + normalized,
            },
            # `start` comes a cycle after the token, the last word one before
            embedding=self.embedding.latency + words + normalized,
            next_embedding=self.embedding.latency + words + self.residual.latency,
            token=results + (0 if self.score is None else self.score.latency) + self.choose.latency + 1,
        )
