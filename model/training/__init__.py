"""Fitting a model to a text: steps, optimizers, worker processes, evaluation, resuming."""
