"""A decoder-only transformer in NumPy, from tokenizer to checkpoint; gradients written by hand."""

from .checkpoint import CheckpointManager, ModelBuilder
from .config import MODEL_CONFIG, TRAINING_CONFIG, ModelConfig, TrainingConfig
from .errors import InputError
from .generation.generate import generate, generate_batch, generate_text
from .generation.sampling import Sampling
from .run import RunDirectory
from .stories import generate_stories
from .tokenizers.bpe import BPETokenizer
from .tokenizers.character import CharacterTokenizer
from .tokenizers.llama2c import Llama2cTokenizer
from .tokenizers.tokenizer import Tokenizer, load_tokenizer
from .tokenizers.word import WordTokenizer
from .training.evaluation import evaluate_loss
from .training.train import train_model
from .training.trainer import TrainingResult
from .transformer import Transformer

__all__ = [
    "MODEL_CONFIG",
    "TRAINING_CONFIG",
    "BPETokenizer",
    "CharacterTokenizer",
    "CheckpointManager",
    "InputError",
    "Llama2cTokenizer",
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
