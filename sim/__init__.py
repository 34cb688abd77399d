"""Simulation: one bench, three simulators (Amaranth's own, cocotb on Verilator, cocotb on Icarus
Verilog).

Nothing is imported here: the part that runs inside a simulator (`sim.bench.streams`,
`sim.bench.cocotb_bench`) must start quickly.
"""
