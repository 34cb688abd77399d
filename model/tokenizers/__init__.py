"""Text to token indices and back: character, word and BPE tokenizers."""
