"""Text from a model: the incremental decoder with its cache, the choice of a token, the loop over
both.
"""
