"""The public model stories260K, which is not part of the project: tests that want it skip where it
is not there.
"""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
MODEL = FOLDER / "stories260K.bin"
TOKENIZER = FOLDER / "tok512.bin"
needs_stories260k = pytest.mark.skipif(
    not MODEL.is_file() or not TOKENIZER.is_file(), reason=f"stories260K is not in {FOLDER}"
)
