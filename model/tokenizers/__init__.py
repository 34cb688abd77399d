"""Text to token indices and back: character, word and BPE tokenizers, and llama2.c's."""
