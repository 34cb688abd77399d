"""Memory files: `$readmemh` text that is read back as the tensor."""

import numpy as np
import pytest

from fixedpoint.export.memory_file import memory_file


def read_memory(text, bits, columns):
    """Parse `$readmemh` text: whitespace-separated hexadecimal words, element 0 in the least
    significant bits.
    """
    rows = []
    for word in text.split():
        assert set(word) <= set("0123456789abcdef")
        assert len(word) == -(-bits * columns // 4)
        value = int(word, 16)
        assert value < 1 << (bits * columns)
        elements = [value >> (bits * column) & ((1 << bits) - 1) for column in range(columns)]
        rows.append([element - (element >> (bits - 1) << bits) for element in elements])
    return np.array(rows)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 13, 16, 32])
@pytest.mark.parametrize("columns", [1, 3, 8])
def test_memory_text_is_the_tensor(bits, columns):
    generator = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    tensor = generator.integers(low, high, size=(9, columns), endpoint=True)
    tensor[0], tensor[1], tensor[2] = low, high, -1
    np.testing.assert_array_equal(read_memory(memory_file(tensor, bits), bits, columns), tensor)


def test_the_first_element_is_in_the_low_bits():
    assert memory_file(np.array([[1, -2, 3]]), 4) == "3e1\n"
    assert memory_file(np.array([5, -1]), 6) == "05\n3f\n"
