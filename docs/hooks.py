"""MkDocs hooks: pages of the site for files outside docs/.

The pages of docs/ link to files of the repository as on GitHub, such as `../CONTRIBUTING.md`. Each
linked file becomes a page of the site: README, contributing guide and changelog as pages, other
files as code, folders as the code of their files. A link to a missing file stops the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

__all__ = ["on_files", "on_page_markdown"]

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
PROJECT_PAGES = {
    "README.md": "project/overview.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Pages of the navigation that are outside docs/, with their paths in the site."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_LANGUAGES = {".py": "python", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page links to."""
    for file, uri in PROJECT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / file).read_text("utf-8")))
    pages = [*DOCS.glob("*.md"), *(ROOT / name for name in PROJECT_PAGES)]
    for path in sorted({path for page in pages for path in _linked_paths(page)}):
        if DOCS in path.parents or _page_uri(path) in PROJECT_PAGES.values():
            continue
        files.append(
            File.generated(
                config,
                _page_uri(path),
                content=_source_page(path),
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files outside docs/ point to their pages in the site."""
    uri = page.file.src_uri
    original = {site: name for name, site in PROJECT_PAGES.items()}.get(uri)
    if not original and uri.startswith("source/"):
        return markdown
    source = ROOT / original if original else DOCS / uri

    def rewrite(link: re.Match[str]) -> str:
        target = _resolve(source, link[1])
        if not original and DOCS in target.parents:
            return link[1]
        return os.path.relpath(_page_uri(target), Path(uri).parent)

    return _LINK.sub(rewrite, markdown)


def _linked_paths(page: Path) -> set[Path]:
    """Return the files and folders that a page links to.

    Raises:
        PluginError: A file outside docs/ does not exist.
    """
    paths = {_resolve(page, link) for link in _LINK.findall(page.read_text("utf-8"))}
    for path in sorted(paths):
        if DOCS not in path.parents and not path.exists():
            raise PluginError(f"{page.relative_to(ROOT)}: the link to {path} leads to no file")
    return paths


def _resolve(page: Path, link: str) -> Path:
    return Path(os.path.normpath(page.parent / link))


def _page_uri(path: Path) -> str:
    """Return the path in the site of the page for a file or folder of the repository."""
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return PROJECT_PAGES.get(name, f"source/{name}.md")


def _source_page(path: Path) -> str:
    """Return a page with the code of a file, or of the files of a folder."""
    title = f"# `{path.relative_to(ROOT).as_posix()}`\n\n"
    if not path.is_dir():
        return title + _code(path)
    files = [file for file in sorted(path.iterdir()) if file.suffix in _LANGUAGES]
    return title + "\n".join(f"## `{file.name}`\n\n{_code(file)}" for file in files)


def _code(path: Path) -> str:
    return f"~~~~{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text('utf-8').rstrip()}\n~~~~\n"
