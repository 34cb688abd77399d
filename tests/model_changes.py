"""Integer models that differ from another in one place."""

from dataclasses import replace


def changed(array, index, change=lambda value: value ^ 1):
    """Return an array with one other element."""
    array = array.copy()
    array[index] = change(array[index])
    return array


def with_block(model, number, **parts):
    """Return a model with other parts of a block; a part is made of the old one."""
    blocks = list(model.blocks)
    blocks[number] = replace(
        blocks[number], **{name: make(getattr(blocks[number], name)) for name, make in parts.items()}
    )
    return replace(model, blocks=tuple(blocks))


def with_matrix(name, **parts):
    """Return what makes an attention one with other parts of a matrix."""
    return lambda attention: replace(attention, **{name: replace(getattr(attention, name), **parts)})
