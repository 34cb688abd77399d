"""Reading and writing files."""

import os

import pytest

from model.errors import InputError
from model.files import atomic_write, read_json, read_text, write_json


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_written_file(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write("é\n")
    assert path.read_bytes() == "é\n".encode()
    path.chmod(0o640)
    with atomic_write(path, "wb") as file:
        file.write(b"\0")
    assert path.read_bytes() == b"\0"
    assert path.stat().st_mode & 0o777 == 0o640
    mask = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "other") as file:
            file.write("")
    finally:
        os.umask(mask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="mode"), atomic_write(path, "a"):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "file"):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"a\0b", "binary"), (b"caf\xe9 au lait", r"not UTF-8 text \(byte 0xe9 at offset 3\)")],
)
def test_text_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text(tmp_path / "text")


def test_text_files(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(tmp_path / "text") == "one\ntwo\n"
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "none")
    with pytest.raises(InputError, match="is a directory"):
        read_text(tmp_path)


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    for content, message in (("[1]", "a JSON list"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "a.json")
