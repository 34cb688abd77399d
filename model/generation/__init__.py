"""Text from a model: the decoder with its cache, the choice of a token, the loop over both."""
