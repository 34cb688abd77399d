"""Names that the command line tells without importing Amaranth."""

# The circuits that `sim.bench.cases` makes benches of for a run.
CIRCUITS = ("matrix-vector", "softmax", "layer-norm", "attention")
