"""The executable specification: Q-formats, integer operators, quantized transformers.

Every circuit equals a function of this package bit for bit. Integer inference needs no float model;
`calibrate` and `quantize_transformer`, which do, live in `fixedpoint.quantization.calibration` and
`fixedpoint.quantization.quantize`.
"""

from .arithmetic import exact_matmul, requantize, shift_right_half_up
from .errors import QuantizationError
from .export.directory import load_export, save_export
from .files import atomic_directory
from .lock import InUseError, lock_directory, lock_target
from .operators.activation import TableActivation
from .operators.attention import Attention, AttentionCache
from .operators.embedding import Embedding, EmbeddingTable
from .operators.exponential import Exponential
from .operators.layer_norm import LayerNorm
from .operators.linear import Linear
from .operators.operator import ResidualAdd
from .operators.product import Product
from .operators.reciprocal import Reciprocal, ReciprocalSquareRoot, ScaledReciprocal
from .operators.rms_norm import RMSNorm
from .operators.rotation import Rotation, RotationTable
from .operators.sampling import Sampler, XorShift32, argmax
from .operators.softmax import Softmax
from .qformat import Overflow, QFormat, Rounding
from .transformer import Block, QuantizedTransformer
from .widths import AccumulatorWidth, accumulator_table

__all__ = [
    "AccumulatorWidth",
    "Attention",
    "AttentionCache",
    "Block",
    "Embedding",
    "EmbeddingTable",
    "Exponential",
    "InUseError",
    "LayerNorm",
    "Linear",
    "Overflow",
    "Product",
    "QFormat",
    "QuantizationError",
    "QuantizedTransformer",
    "RMSNorm",
    "Reciprocal",
    "ReciprocalSquareRoot",
    "ResidualAdd",
    "Rotation",
    "RotationTable",
    "Rounding",
    "Sampler",
    "ScaledReciprocal",
    "Softmax",
    "TableActivation",
    "XorShift32",
    "accumulator_table",
    "argmax",
    "atomic_directory",
    "exact_matmul",
    "load_export",
    "lock_directory",
    "lock_target",
    "requantize",
    "save_export",
    "shift_right_half_up",
]
