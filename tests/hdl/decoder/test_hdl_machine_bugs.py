"""Bugs put into the machine, one at a time: the comparison with the specification finds each."""

import importlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import machine_simulation
import numpy as np
import pytest
from machine_simulation import expected_of_units, first_difference, run_machine
from model_kinds import make_model

from fixedpoint import Sampler
from hdl.decoder.plan import Plan
from hdl.decoder.score_rows import Temperature

# The bug, the module that has it, what stands there, what stands there then.
BUGS = {
    "sequencer: slices of a row are counted on": (
        "sequencer", "part.eq(Mux(part == now.last_slice, 0, part + 1))", "part.eq(part + 1)"
    ),
    "sequencer: the last word does not wait": (
        "sequencer", "held = final & (now.wait_last & ~present).any()", "held = Const(0, 1)"
    ),
    "events: happen a cycle early": ("execute", "Delay(unsigned(1), cycles - 2)", "Delay(unsigned(1), cycles - 3)"),
    "cache: keys and values of all positions at the first word": (
        "results", " + select([one.row for one in states], sequence)", ""
    ),
    "cache: always the first slot": ("results", "Mux(whole, 1 << slot, 0)", "Mux(whole, 1, 0)"),
    "restart: is ignored": ("states", "Mux(choice.restart, 0, following[name])", "following[name]"),
    "context: does not end": (
        "states", "state.position == plan.context_length - 1", "state.position == plan.context_length"
    ),
    "requantize: its table begins again a set early": (
        "requantize_rows", "Mux(count == len(self.entries) - 1,", "Mux(count == len(self.entries) - 2,"
    ),
    "norms: the number begins again a norm early": (
        "results", "Mux(number == len(plan.norms) - 1,", "Mux(number == len(plan.norms) - 2,"
    ),
    "softmax: all rows in one half of the memory": ("softmax_rows", "half.eq(half ^ self.i.last)", "half.eq(half)"),
    "softmax: positions that are not there count": (
        "contexts", "Mux(before.final, slot + 1, plan.slots)", "plan.slots"
    ),
    "rotation: keys with the queries' shift": ("results", "rotate.key.eq(projected.i.key)", "rotate.key.eq(0)"),
    "rotation: of the position before": ("results", "rotate.position.eq(position)", "rotate.position.eq(position - 1)"),
    "residual: read from another address than written": (
        "residual", "Mux(reading == self.words - 1,", "Mux(reading == self.words - 2,"
    ),
    "choice: the last of equal logits of a set": (
        "choose_rows", "pair[1].value > pair[0].value", "pair[1].value >= pair[0].value"
    ),
    "choice: the last of sets with equal logits": ("choose_rows", "level[0].value > best", "level[0].value >= best"),
    "Gumbel: noise of the first logit of a set for all": (
        "score_rows", "noise.index.eq((first + row)[:INDEX_BITS])", "noise.index.eq(first[:INDEX_BITS])"
    ),
}  # fmt: skip


def put_in(monkeypatch, name, old, new):
    """Let all modules of the decoder use a module in which `old`, which it has once, is `new`."""
    module = importlib.import_module(f"hdl.decoder.{name}")
    before = dict(vars(module))
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{name} has it {source.count(old)} times"
    changed = types.ModuleType(module.__name__)
    changed.__file__, changed.__package__ = module.__file__, module.__package__
    exec(compile(source.replace(old, new), module.__file__, "exec"), changed.__dict__)
    for other in [one for key, one in sys.modules.items() if key.startswith("hdl.decoder.")]:
        for key, value in list(vars(other).items()):
            if getattr(value, "__module__", None) == module.__name__ and before.get(key) is value:
                monkeypatch.setattr(other, key, vars(changed)[key])


def difference(machine, model):
    """Return what differs from the specification; None where nothing does.

    A full context, one token behind it, which begins another, and a restart; some are sampled.
    """
    tokens, heats = np.array([3, 7, 1, 4, 9]), [0, 2.0, 0, 0, 8.0]
    numbers = np.array([1, 123456789, 1, 1, 987654321], np.uint32)
    form = model.logits.output
    choices = [
        {"sample": 1, "random": int(number), **vars(Temperature.of(form, heat))} if heat else {"sample": 0}
        for number, heat in zip(numbers, heats, strict=True)
    ]
    restarts = [True, False, False, False, True]
    try:
        given, cycles, seen = run_machine(machine, tokens, restarts, watch=True, choices=choices)
    except AssertionError as error:
        return f"no token, or an assertion: {error}"
    sequences = (tokens[:3], tokens[3:4], tokens[4:])
    logits = np.concatenate([model.forward(one[None])[0] for one in sequences])
    chosen = [
        int(Sampler(form, heat).choose(row[None], numbers[place : place + 1])[0]) if heat else int(row.argmax())
        for place, (row, heat) in enumerate(zip(logits, heats, strict=True))
    ]
    expected = [one for sequence in sequences for one in expected_of_units(machine.plan, model, sequence)]
    found = [first_difference(*pair) for pair in zip(seen, expected, strict=True)]
    predicted = [machine.cycles(position) for position in (0, 1, 2, 0, 0)]
    if given != chosen:
        return f"tokens {given}, not {chosen}"
    if cycles != predicted:
        return f"cycles {cycles}, not {predicted}"
    return next((one for one in found if one is not None), None)


def model_with_ties():
    """Return a model of everything whose logits are each there four times."""
    model = make_model(
        1, channels=8, num_heads=4, num_kv_heads=2, num_layers=1, context_length=3, hidden=11, vocab_size=12,
        weight_bits=4, rotary=True, gated=True,
    )  # fmt: skip
    same = np.arange(model.vocab_size) // 2 % 3  # within a set of two rows, and among sets
    parts = {name: getattr(model.logits, name)[same] for name in ("weight", "bias", "weight_fraction")}
    return replace(model, logits=replace(model.logits, **parts))


@pytest.mark.parametrize(
    "bug",
    [None, *(pytest.param(bug, marks=[] if bug.startswith("restart") else pytest.mark.campaign) for bug in BUGS)],
)
def test_the_machine_is_right_and_each_bug_is_found(bug, monkeypatch):
    monkeypatch.setattr(machine_simulation, "LONGEST_TOKEN", 1000)
    if bug is not None:
        put_in(monkeypatch, *BUGS[bug])
    model = model_with_ties()
    machine = importlib.import_module("hdl.decoder.machine").Machine(Plan(model, 8, 2, 2, True))
    found = difference(machine, model)
    assert (found is None) == (bug is None), found
