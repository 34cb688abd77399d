"""`positron train --resume`: resuming a run, and beginning one with the model of another."""
