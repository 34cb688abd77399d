"""From a circuit to files: Verilog, synthesis, place and route, checks of what the tools made."""
