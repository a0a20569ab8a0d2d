"""Hooks of the site of documents (mkdocs.yml): files from outside of docs/, and the fields in docstrings."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import griffe
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: file of the repository that a page links to -> where the site has it
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.rst": "CHANGELOG.rst",
    "CITATION.cff": "CITATION.cff",
    "NOTICE": "NOTICE.txt",
    "config/nav2_costmap.yaml": "nav2_costmap.yaml",
    "config/weights/scores.yaml": "scores.yaml",
}
_FIELD = re.compile(r"(\w+): ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie outside of docs/."""
    for source, target in ELSEWHERE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that hold in the repository lead to where the site has their targets."""
    places = {place: source for source, place in ELSEWHERE.items()}
    folder = posixpath.dirname(places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        target, heading = link[1], link[2] or ""
        if ":" in target or not target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        return f"]({ELSEWHERE.get(path, path.removeprefix('docs/'))}{heading})"

    return re.sub(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", moved, markdown)


class FieldLists(griffe.Extension):
    """Makes a list of the lines `name: meaning` of a docstring, which Markdown would join to one paragraph."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Change the docstring of one object."""
        if obj.docstring is None:
            return
        lines: list[str] = []
        for line in obj.docstring.value.splitlines():
            field = _FIELD.match(line)
            if field and lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            lines.append(f"- `{field[1]}`: {line[field.end() :]}" if field else line)
        obj.docstring.value = "\n".join(lines)
