"""What the documents show is true: their Python runs, their links lead somewhere, their commands
exist.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cli import COMMANDS, build_parser, import_command

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *ROOT.glob("docs/**/*.md"),
    ]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s]+)(?: \"[^\"]*\")?\)")


def fences(text: str, language: str) -> list[str]:
    """Return the bodies of the fenced blocks of one language."""
    return [match["body"] for match in FENCE.finditer(text) if match["language"].strip() == language]


def snippets() -> list[Path]:
    return [path for path in DOCUMENTS if fences((ROOT / path).read_text(encoding="utf-8"), "python")]


@pytest.mark.parametrize("document", snippets(), ids=str)
def test_python_in_documents_runs(document: Path, tmp_path: Path) -> None:
    # The snippets of a page build on each other, as a reader reads them.
    program = "\n".join(fences((ROOT / document).read_text(encoding="utf-8"), "python"))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{document}:\n{result.stderr}"


def written_files() -> dict[Path, str]:
    """Return the files of the project that documents write out: the fences of `python PATH`."""
    found = {}
    for document in DOCUMENTS:
        for match in FENCE.finditer((ROOT / document).read_text(encoding="utf-8")):
            if re.match(r"python \S", match["language"]):
                found[Path(match["language"].split()[1])] = match["body"]
    return found


def test_files_in_documents_import_what_exists() -> None:
    files = written_files()
    assert files
    wanted = set()
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                package = path.parts[: -node.level] if node.level else ()
                module = ".".join([*package, *([node.module] if node.module else [])])
                wanted |= {(module, alias.name) for alias in node.names}
    here = {".".join(path.with_suffix("").parts) for path in files}
    for module, name in wanted:
        if (
            module.partition(".")[0] in ("model", "fixedpoint", "hdl", "sim")
            and not {module, f"{module}.{name}"} & here
        ):
            assert hasattr(importlib.import_module(module), name), f"a document imports {name} from {module}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files(document: Path) -> None:
    text = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    missing = [target for target in local if not (ROOT / document.parent / target).exists()]
    assert not missing, f"{document} links to what is not there: {missing}"


def test_the_site_has_every_page_in_its_navigation_once() -> None:
    _, navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")
    pages = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(pages) == sorted(path.relative_to("docs").as_posix() for path in DOCUMENTS if path.parts[0] == "docs")


def test_links_lead_to_headings() -> None:
    # as GitHub and the site name a heading
    def anchors(path: Path) -> set[str]:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}

    wrong = []
    for document in DOCUMENTS:
        for match in LINK.finditer(FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))):
            page, _, anchor = match["target"].partition("#")
            target = ROOT / document.parent / page if page else ROOT / document
            if anchor and "://" not in page and target.suffix == ".md" and anchor not in anchors(target):
                wrong.append(f"{document}: {match['target']}")
    assert not wrong


def shown_commands() -> list[tuple[Path, str]]:
    """Return every `positron …` and `make …` line of the documents' shell blocks."""
    lines = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for language in ("sh", "shell", "console", "bash"):
            for block in fences(text, language):
                for line in block.replace("\\\n", " ").splitlines():
                    words = line.removeprefix("$ ").strip()
                    if words.startswith(("positron ", "make ", "python scripts/")):
                        lines.append((document, words))
    return lines


def test_documents_show_commands() -> None:
    assert any(document == Path("README.md") and line.startswith("make demo") for document, line in shown_commands())


@pytest.mark.parametrize(("document", "line"), shown_commands(), ids=lambda value: str(value))
def test_commands_in_documents_parse(document: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(wanted) <= set(targets), f"{document} shows a target that does not exist: {line}"
        return
    if words[0] == "python":
        words = ["positron", Path(words[1]).stem, *words[2:]]
    name = words[1]
    assert name in COMMANDS, f"{document} shows a command that does not exist: {line}"
    cut = next((index for index, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))
    if "--help" in words[:cut]:
        return
    # argparse exits on an unknown argument
    build_parser(name, import_command(name)).parse_args(words[1:cut])


def test_fences_are_found_and_a_broken_one_would_be_seen() -> None:
    text = "text\n```python\nx = 1\n```\nmore\n```sh\npositron train\n```\n"
    assert fences(text, "python") == ["x = 1\n"]
    assert fences(text, "sh") == ["positron train\n"]
