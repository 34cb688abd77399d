"""What MkDocs cannot do itself for the documentation's site (`mkdocs.yml` names this file).

- Links to sources outside docs/ lead to pages of the site that show them.
- README, CHANGELOG and CONTRIBUTING become pages too.
- A page for each folder of the five packages documents it from its docstrings.
- Formulas become MathML, so nothing draws them at view time.
"""

import html
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "fixedpoint", "hdl", "sim", "scripts")
TEXTS = {"CONTRIBUTING.md": "Contributing", "README.md": "Readme", "CHANGELOG.md": "Changelog"}
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
FENCED = re.compile(r"^( *```)(\w+) (\S+\.\w+)[^\n]*$", re.MULTILINE)
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def page_of(path: str) -> str:
    """Return the page, relative to docs/, that shows a file of the project."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path.lower() if path in TEXTS else f"source/{path}.md"


def with_links(text: str, folder: str, page: str) -> str:
    """Return Markdown of a file in `folder` of the project as `page` of the site can hold it."""

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["target"]))
        if not (ROOT / path).is_file():
            return match[0]  # MkDocs says that it leads nowhere
        return f"]({posixpath.relpath(page_of(path), posixpath.dirname(page))}{match['anchor'] or ''})"

    return FENCED.sub(r'\1\2 title="\3"', LINK.sub(link, text))


def linked_sources(text: str, folder: str) -> set[str]:
    """Return the files outside docs/ that Markdown of a file in `folder` links to."""
    paths = {posixpath.normpath(posixpath.join(folder, match["target"])) for match in LINK.finditer(text)}
    return {path for path in paths if not path.startswith("docs/") and path not in TEXTS and (ROOT / path).is_file()}


def shown(path: str) -> str:
    """Return a page that shows a source file."""
    language = {"py": "python", "c": "c", "cpp": "cpp"}.get(path.rpartition(".")[2], "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text(encoding='utf-8')}\n````\n"


def reference(folder: Path) -> str:
    """Return a page about the modules of one folder of a package."""
    name = ".".join(folder.relative_to(ROOT).parts)
    modules = [f"{name}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    options = "    options: {show_submodules: false, members: false}"
    return f"# {name}\n\n::: {name}\n{options}\n\n" + "".join(f"::: {module}\n\n" for module in modules)


def folders(package: str) -> list[Path]:
    """Return the folders of a package that hold modules, its own first."""
    return sorted({path.parent for path in (ROOT / package).rglob("*.py")})


def on_startup(command: str, dirty: bool) -> None:
    """Say nothing but warnings."""
    logging.getLogger("mkdocs").setLevel(logging.WARNING)


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    parts = {title: pages for part in config["nav"] for title, pages in part.items()}
    parts["Guides"] += [{TEXTS["CONTRIBUTING.md"]: "contributing.md"}]
    modules = {
        package: [
            {".".join(folder.relative_to(ROOT).parts): f"api/{'.'.join(folder.relative_to(ROOT).parts)}.md"}
            for folder in folders(package)
        ]
        for package in PACKAGES
    }
    parts["Reference"] += [{"API": [{package: pages} for package, pages in modules.items()]}]
    parts["Reference"] += [{TEXTS["CHANGELOG.md"]: "changelog.md"}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in TEXTS if (ROOT / path).is_file()}
    sources = set()
    for file in files.documentation_pages():
        sources |= linked_sources(file.content_string, posixpath.dirname(f"docs/{file.src_uri}"))
    for text in texts.values():
        sources |= linked_sources(text, "")
    made = {page_of(path): with_links(text, "", page_of(path)) for path, text in texts.items()}
    made |= {page_of(path): shown(path) for path in sorted(sources)}
    for package in PACKAGES:
        made |= {f"api/{'.'.join(folder.relative_to(ROOT).parts)}.md": reference(folder) for folder in folders(package)}
    for page, text in made.items():
        place = InclusionLevel.NOT_IN_NAV if page.startswith(("source/", "readme")) else InclusionLevel.INCLUDED
        files.append(File.generated(config, page, content=text, inclusion=place))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to the pages that show their files."""
    if page.file.generated_by:
        return markdown
    return with_links(markdown, posixpath.dirname(f"docs/{page.file.src_uri}"), page.file.src_uri)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Turn formulas into MathML."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match["tex"]), display="inline" if match["tag"] == "span" else "block")

    return FORMULA.sub(formula, content)
