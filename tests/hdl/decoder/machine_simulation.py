"""Run a decoder machine in Amaranth's simulator, and say what each of its units should give."""

import numpy as np
from amaranth.sim import Simulator

LONGEST_TOKEN = 20_000  # cycles


def run_machine(machine, tokens, restarts, *, watch=False, seed=None, choices=None):
    """Return the tokens given, the cycles each took, and for each token what the units gave.

    With a seed, both ends pause at random. `choices` has for each token other fields of the input.
    """
    fields = zip(tokens, restarts, choices or [{}] * len(tokens), strict=True)
    payloads = [{"token": int(token), "restart": int(restart), **choice} for token, restart, choice in fields]
    return run_payloads(machine, payloads, watch=watch, seed=seed)


def run_payloads(machine, payloads, *, watch=False, seed=None):
    """As `run_machine`; of two sequences, a payload is a list of two dictionaries."""
    generator = None if seed is None else np.random.default_rng(seed)
    given, cycles, seen = [], [], []

    def record(ctx, values):
        units = {
            "residual": (machine.residual.o, "values"),
            "norms": (machine.norms.o, "data"),
            "requantize": (machine.requantize.o, "values"),
            "divide": (machine.divide.o, "data"),
            "hidden": (machine.hidden.o, "values"),
        }
        if machine.rotate is not None:
            units["rotate"] = (machine.rotate.o, "values")
        for name, (port, field) in units.items():
            if ctx.get(port.valid):
                values.setdefault(name, []).extend(ctx.get(one) for one in port[field])
        cache = machine.internals.cache
        if enable := ctx.get(cache.write_enable):
            word = ctx.get(cache.write_data) & ((1 << machine.plan.kv_channels * machine.plan.activation_bits) - 1)
            values.setdefault("writes", []).extend([ctx.get(cache.write_address), enable, word])

    async def pause(ctx):
        # mostly short, at times very long
        for _ in range(0 if generator is None else int(min(generator.pareto(0.7) * 2, 60))):
            await ctx.tick()

    async def bench(ctx):
        for payload in payloads:
            await pause(ctx)
            ctx.set(machine.i.payload, payload)
            ctx.set(machine.i.valid, 1)
            while not ctx.get(machine.i.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(machine.i.valid, 0)
            ctx.set(machine.i.payload.as_value(), 0)
            values, edges = {}, 1
            while not ctx.get(machine.o.valid):
                if watch:
                    record(ctx, values)
                await ctx.tick()
                edges += 1
                assert edges < LONGEST_TOKEN, "no token came"
            await pause(ctx)
            assert ctx.get(machine.o.valid)
            one = ctx.get(machine.o.payload)
            given.append(one if isinstance(one, int) else list(one))
            ctx.set(machine.o.ready, 1)
            await ctx.tick()
            ctx.set(machine.o.ready, 0)
            cycles.append(edges)
            seen.append(values)

    simulator = Simulator(machine)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return given, cycles, seen


def expected_of_units(plan, model, tokens):
    """Return for each token of one sequence what the units should give; None where nothing
    counts.
    """
    tensors = {}
    model.forward(np.asarray(tokens)[None], observe=lambda name, values: tensors.update({name: values[0]}))
    order, bits = plan.query_order, plan.activation_bits

    def word(row):
        return sum((int(value) & ((1 << bits) - 1)) << place * bits for place, value in enumerate(row))

    def padded(row, count):
        return [*map(int, row), *[None] * (-len(row) % count)]

    results = []
    for place in range(len(tokens)):
        row = {name: values[place] for name, values in tensors.items()}
        wanted = {"residual": list(row["embedding"]), "norms": [], "requantize": [], "divide": [], "hidden": []}
        wanted["writes"] = []
        if plan.rotary:
            wanted["rotate"] = []
        for layer in range(plan.layers):
            one = {name.removeprefix(f"blocks.{layer}."): values for name, values in row.items()}
            wanted["norms"] += [*one["attention_norm"], *one["feed_forward_norm"]]
            wanted["residual"] += [*one["attention_residual"], *one["feed_forward_residual"]]
            up = one["feed_forward.up"]
            if plan.gated:
                up = np.stack([one["feed_forward.gate"], up], axis=1).ravel()
            wanted["requantize"] += [*one["attention.query"][order], *one["attention.key"], *one["attention.value"]]
            wanted["requantize"] += [*one["attention.output"], *padded(up, plan.rows), *one["feed_forward.down"]]
            if plan.rotary:
                wanted["rotate"] += [*one["attention.rotated_query"][order], *one["attention.rotated_key"]]
            key = one["attention.rotated_key" if plan.rotary else "attention.key"]
            for values, stored in ((False, key), (True, one["attention.value"])):
                address = plan.cache_address(layer, values=values) + place // plan.slots
                wanted["writes"] += [address, 1 << place % plan.slots, word(stored)]
            wanted["divide"] += list(one["attention.context"][order])
            wanted["hidden"] += padded(one["feed_forward.activation"], plan.rows // (1 + plan.gated))
        wanted["norms"] += list(row["final_norm"])
        wanted["requantize"] += padded(row["logits"], plan.rows)
        results.append(wanted)
    return results


def first_difference(seen, wanted):
    """Return the first unit, place and values that differ; None where nothing does."""
    for name, values in wanted.items():
        given = seen.get(name, [])
        if len(given) != len(values):
            return name, "length", len(given), len(values)
        for place, (got, want) in enumerate(zip(given, values, strict=True)):
            if want is not None and got != want:
                return name, place, got, int(want)
    return None
