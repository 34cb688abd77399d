"""Everything that makes a model fit a text: steps, optimizers, worker processes, evaluation,
resuming.
"""
