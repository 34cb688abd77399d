"""The C program: the integer model in C11, written from the equations, compiled and run here.

Its source is in the directory `native` beside this file; `c_header.py` writes the model that is
compiled into it. It is the second, independent implementation of the specification: tests compare
its logits and tokens with Python's. It is also the CPU that circuits are measured against.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CompilerError, QuantizationError
from ..files import atomic_directory
from ..qformat import IntegerArray
from ..transformer import QuantizedTransformer
from .c_header import c_header

SOURCES = Path(__file__).with_name("native")
SOURCE, MAKEFILE, HEADER = "transformer.c", "Makefile", "model.h"
COMPILERS = ("cc", "gcc", "clang")
OPTIMIZED = ("-O3", "-march=native")  # for this machine
WARNINGS = ("-std=c11", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror")
TEMPERATURE_DECIMALS = 6


def write_program(quantized: QuantizedTransformer, directory: str | Path) -> None:
    """Write `model.h`, `transformer.c` and a Makefile to a directory, all of it or nothing.

    An earlier program there is replaced, and so is an empty directory.

    Raises:
        QuantizationError: The directory holds something else, or the model is too wide for the
            program (`c_header`).
    """
    path = Path(directory)
    if path.exists() and not (path / SOURCE).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise QuantizationError(f"{path} exists and holds no {SOURCE}; choose another directory or remove it")
    text = c_header(quantized)
    with atomic_directory(path) as temporary:
        (temporary / HEADER).write_text(text, encoding="ascii", newline="\n")
        for name in (SOURCE, MAKEFILE):
            shutil.copyfile(SOURCES / name, temporary / name)


def stated_seconds(messages: str) -> float:
    """Return the seconds that a program says it took."""
    match = re.search(r"in (\d+) ns", messages)
    assert match, messages
    return int(match[1]) * 1e-9


def find_compiler() -> list[str]:
    """Return the C compiler's command: `$CC` with its options, else the first of `COMPILERS`.

    Raises:
        CompilerError: There is none, or `$CC` names none.
    """
    chosen = os.environ.get("CC", "").strip()
    if chosen:
        words = shlex.split(chosen)
        if shutil.which(words[0]) is None:
            raise CompilerError(f"the C compiler that CC names, {words[0]}, is not found; unset CC or install it")
        return words
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise CompilerError(
        f"there is no C compiler ({', '.join(COMPILERS)}); install one, for instance gcc, or name it in the variable CC"
    )


def compile_program(directory: Path, source: str, *options: str) -> Path:
    """Compile a source file of a directory, warnings being errors; return the executable beside it.

    Raises:
        CompilerError: There is no compiler, or it fails; the message ends with what it said.
    """
    path = directory.absolute()
    command = [*find_compiler(), *WARNINGS, "-o", Path(source).stem, source, *options]
    result = subprocess.run(command, cwd=path, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode != 0:
        raise CompilerError(f"`{shlex.join(command)}` in {path} failed:\n{result.stderr.strip()[-2000:]}")
    return path / Path(source).stem


@dataclass(frozen=True)
class NativeTransformer:
    """A compiled model.

    Attributes:
        executable: The program; it reads prompts from its standard input, one a line, as token
            numbers.
        context_length: The longest prompt of `logits`.
        vocab_size: Tokens are below it.
    """

    executable: Path
    context_length: int
    vocab_size: int

    @classmethod
    def build(
        cls, quantized: QuantizedTransformer, directory: str | Path, options: Sequence[str] = OPTIMIZED
    ) -> NativeTransformer:
        """Write the program to a directory, compile it there, and return it.

        Args:
            quantized: The model.
            directory: As for `write_program`; the executable is put beside the source.
            options: For the compiler, beside the language and the warnings, which are errors.

        Raises:
            CompilerError: There is no compiler, or it fails; the message ends with what it said.
            QuantizationError: As `write_program`.
        """
        find_compiler()
        write_program(quantized, directory)
        executable = compile_program(Path(directory), SOURCE, *options)
        return cls(executable, quantized.context_length, quantized.vocab_size)

    def generate(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Return `num_tokens` tokens for each prompt, the same as `generation.generate_batch`.

        Args:
            prompts: Tokens; at least one prompt, each of at least one token.
            num_tokens: How many for each.
            temperature: 0 takes the likeliest token; otherwise at most six decimals, up to 1000.
            seed: 0 to 2**32 − 1.

        Raises:
            QuantizationError: A prompt or an option that the program refuses.
        """
        return self.timed(prompts, num_tokens, temperature=temperature, seed=seed)[0]

    def timed(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> tuple[list[list[int]], float]:
        """Return the tokens of `generate` and the seconds they took, without start and reading."""
        if not prompts:
            raise QuantizationError("there is no prompt; generation needs at least one")
        text = f"{temperature:.{TEMPERATURE_DECIMALS}f}"
        if float(text) != temperature:
            raise QuantizationError(
                f"the C program takes temperatures of at most {TEMPERATURE_DECIMALS} decimals, not {temperature!r}"
            )
        options = ["--tokens", str(num_tokens), "--temperature", text, "--seed", str(seed), "--time"]
        lines, messages = self._run(options, prompts)
        return [[int(word) for word in line.split()] for line in lines], stated_seconds(messages)

    def logits(self, prompt: Sequence[int]) -> IntegerArray:
        """Return the logits, int64 (T, V), after each token of a prompt, T <= context_length."""
        lines, _ = self._run(["--logits"], [prompt])
        return np.array([[int(word) for word in line.split()] for line in lines], dtype=np.int64)

    def _run(self, options: Sequence[str], prompts: Sequence[Sequence[int]]) -> tuple[list[str], str]:
        """Return the lines that the program printed, and what it wrote to standard error."""
        text = "".join(" ".join(str(int(token)) for token in prompt) + "\n" for prompt in prompts)
        result = subprocess.run([self.executable, *options], input=text, capture_output=True, text=True, check=False)
        if result.returncode == 1 and result.stderr.startswith("error: "):
            raise QuantizationError(f"{self.executable.name}: {result.stderr.removeprefix('error: ').strip()}")
        if result.returncode != 0:
            raise CompilerError(
                f"{self.executable} ended with status {result.returncode}: {result.stderr.strip()[-2000:] or 'no message'}"
            )
        return result.stdout.splitlines(), result.stderr
