"""Machines of shapes that nobody tuned for: right, or refused by name."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from machine_simulation import run_machine

from fixedpoint import QuantizationError
from fixedpoint.fast.transformer import FastTransformer
from fixedpoint.quantization.calibration import QuantizationSettings
from hdl.board.boards import BOARDS
from hdl.board.decoder_estimate import MOST_ROWS, ROW_LANES, best_estimate
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.errors import CircuitError
from model.config import ACTIVATIONS, NORMS, POSITIONS, ModelConfig
from sim.decoder_models import DecoderShape, random_decoder

MOST_LANES = 192  # twice the widest random model's channels
FEW_LANES = 64  # that are simulated where so few suit
SHAPES = {
    "odd": {"vocab_size": 131, "embed_dim": 100, "num_heads": 5, "num_layers": 3, "max_seq_len": 77, "ff_dim": 7},
    "one head": {"embed_dim": 36, "num_heads": 1, "num_layers": 1, "max_seq_len": 2},
    "llama of one head": {
        "embed_dim": 36, "num_heads": 1, "num_layers": 2, "max_seq_len": 3,
        "activation": "swiglu", "position": "rotary", "norm": "rms", "ff_dim": 7,
    },
}  # fmt: skip


@dataclass
class Case:
    """A model and one of its machines, by a seed.

    Attributes:
        plan: Model and layout.
        tokens: Two sequences (2, T).
    """

    plan: Plan
    tokens: np.ndarray

    def check(self, seed=None):
        machine, (_, length) = Machine(self.plan), self.tokens.shape
        given, cycles, _ = run_machine(machine, self.tokens.ravel(), 2 * [True, *[False] * (length - 1)], seed=seed)
        assert given == FastTransformer(self.plan.model).forward(self.tokens).argmax(axis=-1).ravel().tolist()
        assert cycles == 2 * [machine.cycles(position) for position in range(length)]


def suiting(sizes, model, sampling):
    """Return the plans of lanes, norm_lanes and context_lanes that are accepted."""
    plans = []
    for one in sizes:
        try:
            plans.append(Plan(model, *one, sampling))
        except CircuitError:
            continue
    return plans


def random_case(seed):
    """Return a machine of a random model, random lanes among all that suit it; None where none
    does, or where the model cannot be quantized.
    """
    generator = np.random.default_rng(seed)
    kv_heads, passes, head_dim = (int(generator.integers(1, limit)) for limit in (4, 5, 9))
    position = str(generator.choice([one for one in POSITIONS if one != "rotary" or head_dim % 2 == 0]))
    heads = kv_heads * passes
    config = ModelConfig(
        vocab_size=int(generator.integers(2, 20)),
        embed_dim=heads * head_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        num_layers=int(generator.integers(1, 4)),
        ff_dim=int(generator.integers(1, 25)),
        max_seq_len=int(generator.integers(1, 9)),
        activation=str(generator.choice(ACTIVATIONS)),
        position=position,
        norm=str(generator.choice(NORMS)),
        tie_embeddings=bool(generator.integers(2)),
        use_bias=bool(generator.integers(2)),
    )
    bits = int(generator.integers(1, 9))
    settings = QuantizationSettings(
        weight_bits="ternary" if bits == 1 else bits,
        activation_bits=int(generator.integers(4, 11)),
        residual_bits=int(generator.integers(8, 17)),
        embedding_bits=int(generator.integers(2, 9)),
    )
    try:
        model = random_decoder(config, settings, seed)
    except QuantizationError:
        return None
    sampling = bool(generator.integers(2))
    plans = [plan for lanes in range(1, MOST_LANES + 1) for plan in suiting([(lanes, 1, 1)], model, sampling)]
    plans = [plan for plan in plans if max(plan.rows, plan.slots) <= MOST_ROWS]
    if not plans:
        # only this is refused with every number of lanes
        assert config.activation == "swiglu" and (config.embed_dim % 2 or config.kv_dim % 2)
        return None
    few = [plan for plan in plans if plan.lanes <= max(FEW_LANES, plans[0].lanes)]
    lanes = few[generator.integers(len(few))].lanes
    suits = suiting(product([lanes], ROW_LANES, ROW_LANES), model, sampling)
    plan = suits[generator.integers(len(suits))]
    tokens = generator.integers(0, config.vocab_size, (2, int(generator.integers(1, config.max_seq_len + 1))))
    return Case(plan, tokens)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(300))
def test_a_random_shape_with_random_lanes(seed):
    case = random_case(seed)
    if case is not None:
        case.check(seed if seed % 2 else None)


@pytest.mark.parametrize("name", SHAPES)
def test_a_board_has_a_machine_of_an_odd_shape(name):
    model = DecoderShape(ModelConfig.from_dict(SHAPES[name]), 4).model()
    found = best_estimate(model, BOARDS["ulx3s-85f"])
    assert found.plan.lanes % found.plan.channels == 0
    assert found.last == Machine(found.plan).cycles(model.context_length - 1)


@pytest.mark.campaign
@pytest.mark.parametrize("name", SHAPES)
def test_an_odd_shape_is_right(name):
    config = ModelConfig.from_dict(SHAPES[name])
    plan = best_estimate(DecoderShape(config, 4).model(), BOARDS["ulx3s-25f"]).plan
    Case(plan, np.random.default_rng(2).integers(0, config.vocab_size, (2, min(config.max_seq_len, 6)))).check()


def test_four_passes_do_not_overtake_a_slow_division():
    config = ModelConfig(vocab_size=5, embed_dim=32, num_heads=8, num_kv_heads=2, num_layers=1, ff_dim=4, max_seq_len=2)
    plan = Plan(DecoderShape(config, 8).model(), 32, 4, 1)
    assert plan.passes == 4
    Case(plan, np.array([[3, 1], [4, 0]])).check()


def test_wide_activations_leave_no_room_for_pairs_of_weights():
    config = ModelConfig(vocab_size=5, embed_dim=4, num_heads=2, num_layers=1, ff_dim=3, max_seq_len=2)
    plans = [
        Plan(random_decoder(config, QuantizationSettings(weight_bits=4, activation_bits=bits), 1), 4, 2, 2)
        for bits in (8, 10)
    ]
    assert [plan.pairs for plan in plans] == [True, False]
    Case(plans[1], np.array([[3, 1], [4, 0]])).check()


def test_narrow_weights_of_an_odd_width_do_not_share_multipliers():
    config = ModelConfig(vocab_size=5, embed_dim=5, num_heads=1, num_layers=1, ff_dim=7, max_seq_len=2, norm="rms")
    model = DecoderShape(config, "ternary").model()
    plan = Plan(model, 5, 1, 1)
    assert not plan.pairs and plan.rows == 1
    Case(plan, np.array([[3, 1], [4, 4]])).check()


def test_what_no_lanes_suit_is_refused_with_the_reason():
    config = ModelConfig(vocab_size=5, embed_dim=9, num_heads=1, num_layers=1, max_seq_len=2, activation="swiglu")
    model = DecoderShape(config, 4).model()
    with pytest.raises(CircuitError, match=r"9 lanes do not suit this model: .*gates need an even number of rows"):
        best_estimate(model, BOARDS["ulx3s-85f"])
    wide = DecoderShape(ModelConfig(vocab_size=5, embed_dim=15, num_heads=3, num_layers=1, max_seq_len=2), 8).model()
    with pytest.raises(CircuitError, match="norm_lanes of 3 and 4 rows a word must divide one another"):
        Plan(wide, 60, 3, 1)
    with pytest.raises(CircuitError, match="context_lanes of 3 and the head size 5 must divide one another"):
        Plan(wide, 15, 1, 3)
