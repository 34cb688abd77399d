"""The compiled machine of each kind of model: tokens, cycles, pauses, restarts, resets, samples."""

from dataclasses import replace

import numpy as np
import pytest
from model_kinds import make_model

from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from model.config import ModelConfig
from sim.decoder_campaign import make_pair_records, make_records, run_decoder_campaign
from sim.decoder_models import LLAMA, SHAPES, DecoderShape
from sim.simulators.decoder_process import compile_decoder

SMALL = {"vocab_size": 13, "embed_dim": 8, "ff_dim": 11, "max_seq_len": 5}


def learned():
    """The machine of `test_sim_decoder_process.py`, compiled once for both."""
    model = make_model(
        1, channels=8, num_heads=2, context_length=5, hidden=12, vocab_size=11, num_layers=1, weight_bits=4
    )
    return Machine(Plan(model, 16, sampling=True))


def llama():
    """Stories260K, smaller."""
    config = ModelConfig.from_dict({**SMALL, **LLAMA, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2})
    return Machine(Plan(DecoderShape(config, 4).model(), 8, 2, 2))


def ternary():
    """GateGPT's and ZyboGPT's, smaller."""
    config = ModelConfig.from_dict({**SMALL, "num_heads": 2, "num_layers": 1, "norm": "rms", "use_bias": False})
    return Machine(Plan(DecoderShape(config, "ternary").model(), 8))


def pair():
    """The machine of two sequences of `test_sim_decoder_process.py`, compiled once for both."""
    model = make_model(
        2, channels=8, num_heads=2, context_length=5, hidden=12, vocab_size=11, num_layers=1, weight_bits=4
    )
    return Machine(Plan(model, 16, sampling=True, sequences=2))


@pytest.mark.slow
@pytest.mark.parametrize("make", [learned, llama, ternary, pair])
def test_twenty_texts_of_a_small_model_of_each_kind(make, simulation_builds, tmp_path):
    machine, counts = make(), []
    bench = compile_decoder(make(), simulation_builds)
    result = run_decoder_campaign("small", machine, 20, 5, bench, chunk=5, progress=counts.append)
    assert result.failure == ""
    assert (result.vectors, counts) == (20, [0, 5, 5, 5, 5])
    assert result.results >= 20 * machine.plan.context_length
    # All are done: it does not begin again.
    assert run_decoder_campaign("small", machine, 20, 5, bench, chunk=5) == result


@pytest.mark.slow
def test_a_difference_is_found_and_found_again(simulation_builds, monkeypatch):
    machine, bench = learned(), compile_decoder(learned(), simulation_builds)
    right = machine.cycles

    def campaign(count, seed):
        return run_decoder_campaign("wrong", machine, count, seed, bench, chunk=2)

    monkeypatch.setattr(machine, "cycles", lambda position: right(position) + (position == 3))
    result = campaign(6, 8)
    assert "cycles" in result.failure and result.failed_seed == 8
    assert campaign(result.failed_vectors, result.failed_seed).failure == result.failure
    monkeypatch.undo()
    records = make_records(machine, 2, 9)
    monkeypatch.setattr("sim.decoder_campaign.make_records", lambda *_: wrong_token(records))
    assert "token 7 of" in campaign(2, 9).failure


def wrong_token(records):
    changed = records.copy()
    changed["reset_after"][7] = 0
    changed["next"][7] += 1
    return changed


def test_records_have_all_that_a_campaign_is_for():
    machine = learned()
    length = machine.plan.context_length
    records = np.concatenate([make_records(machine, 20, seed) for seed in (4, 5, 6, 7)])
    again = np.concatenate([make_records(machine, 20, seed) for seed in (4, 5, 6, 7)])
    assert (records == again).all()
    assert {0, 1} == set(records["sample"]) == set(records["restart"])
    pauses = records["source_pause"], records["sink_pause"]
    assert all(one.max() > 50 and np.median(one) <= 2 for one in pauses)
    assert not records[: len(make_records(machine, 20, 4))]["sink_pause"].any()
    assert 0 < np.count_nonzero(records["reset_after"]) < len(records) / length
    begins = records["cycles"] == machine.cycles(0)
    # some begin by themselves: after a full context, or a reset
    assert np.count_nonzero(begins & (records["restart"] == 0)) > 10


def test_two_sequences_are_together_apart_and_anew():
    machine = pair()
    records = np.concatenate([make_pair_records(machine, 20, seed) for seed in (4, 5)])
    active, restart = records["turns"]["active"], records["turns"]["restart"]
    runs, counts = np.unique(active, axis=0, return_counts=True)
    assert runs.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert counts.min() > 5 and counts.max() > len(records) / 2
    assert ((active == 1) & (restart == 1)).sum(axis=0).min() > 5
    assert (
        np.count_nonzero((active == 1).all(axis=1) & (restart.sum(axis=1) == 1)) > 5
    )  # one in the middle of the other
    assert set(records["cycles"].tolist()) > {machine.cycles([4, 4]), machine.cycles([None, 4])}
    assert np.count_nonzero(records["reset_after"]) == 4
    assert records["turns"]["sample"].any(axis=0).all()


def test_the_campaigns_models_are_those_of_the_command():
    from hdl.catalog.names import DECODER_NAMES

    assert tuple(SHAPES) == DECODER_NAMES
    small = replace(SHAPES["decoder-gategpt"].config, max_seq_len=4)
    assert replace(SHAPES["decoder-gategpt"], config=small).model().context_length == 4
