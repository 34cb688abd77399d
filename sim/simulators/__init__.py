"""Building and running circuits in Verilator, Icarus Verilog and cocotb."""
