"""A decoder-only transformer in NumPy: tokenizers, training, generation, checkpoints. Every gradient is written by hand."""

from .bpe_tokenizer import BPETokenizer
from .character_tokenizer import CharacterTokenizer
from .checkpoint import CheckpointManager, ModelBuilder
from .config import MODEL_CONFIG, TRAINING_CONFIG, ModelConfig, TrainingConfig
from .errors import InputError
from .evaluation import evaluate_loss
from .generation import generate, generate_batch, generate_text
from .run import RunDirectory
from .sampling import Sampling
from .stories import generate_stories
from .tokenizer import Tokenizer, load_tokenizer
from .trainer import TrainingResult
from .training import train_model
from .transformer import Transformer
from .word_tokenizer import WordTokenizer

__all__ = [
    "MODEL_CONFIG",
    "TRAINING_CONFIG",
    "BPETokenizer",
    "CharacterTokenizer",
    "CheckpointManager",
    "InputError",
    "ModelBuilder",
    "ModelConfig",
    "RunDirectory",
    "Sampling",
    "Tokenizer",
    "TrainingConfig",
    "TrainingResult",
    "Transformer",
    "WordTokenizer",
    "evaluate_loss",
    "generate",
    "generate_batch",
    "generate_stories",
    "generate_text",
    "load_tokenizer",
    "train_model",
]
