"""What the site needs beside the pages: cross-references of docstrings, and links that lead out of docs/.

Pages are read on the code host, too, so they hold nothing that only mkdocs understands, but for those of
reference/ with docstrings. The hooks run while `make docs` builds; this module itself needs Python-Markdown alone.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

import gradvar

ROLE = r":(?:class|func|meth|mod|attr|data|exc|obj):`(~?)([\w.]+)`"
_NUMBER = re.compile(r"\[[-\d.,e ∞%]+\]|-?\d[\d.]*(?:e-\d+|–\d[\d.]*)")  # an interval, a range, a power of ten
_LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\(([^)\s:#]+)(#[^)\s]*)?\)")

_PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./(?=figures/)")


def target_of(name: str) -> str:
    """Return the full name of what a role refers to: public names may stand without the package."""
    return f"gradvar.{name}" if name.partition(".")[0] in gradvar.__all__ else name


class Roles(Extension):
    """Reads the roles of docstrings, such as ``:class:`~gradvar.MaskedLM```, as code that is a link where it leads."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  (Markdown's name)
        """Register before code spans, whose backticks a role has."""
        md.inlinePatterns.register(_Role(ROLE, md), "roles", 195)


class _Role(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # type: ignore[override]  # noqa: N802
        """Make one reference; where it leads nowhere, the plugin leaves the code, as it is optional."""
        name = m[2]
        element = Element("autoref", {"identifier": target_of(name), "optional": "optional"})
        code = SubElement(element, "code")
        code.text = AtomicString(name.rpartition(".")[2] if m[1] else name.removeprefix("gradvar."))
        return element, m.start(0), m.end(0)


def without_ways_out(markdown: str, path: str) -> str:
    """Take the links away that lead out of docs/, to files that the site does not have; their text stays.

    Args:
        markdown: A page.
        path: Of the page, in docs/.

    Returns:
        The page.
    """

    def replaced(link: re.Match[str]) -> str:
        leads = normpath(join(dirname(path), link[2]))
        return link[1] if leads.startswith("..") else link[0]

    return _LINK.sub(replaced, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Take the pictures of the experiments into the site, which lie beside docs/."""
    from mkdocs.structure.files import File

    root = Path(config.docs_dir).parent
    for path in sorted(root.glob("figures/*.png")):
        files.append(File.generated(config, str(path.relative_to(root)), abs_src_path=str(path)))
    return files


def on_config(config: Any) -> Any:
    """Let all pages and docstrings be read with roles."""
    config.markdown_extensions.append(Roles())
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Prepare a page: leave out what only the code host should show, and links to what the site does not have."""
    kept = re.sub(r"<!-- code host only -->.*?<!-- end -->\n*", "", markdown, flags=re.DOTALL)
    return without_ways_out(_PICTURE.sub(r"\1", kept), page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Mend tables: no backslash before a bar in code, where the code host needs it, and no number torn in two."""
    whole = re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace("\\|", "|"), html)
    return re.sub(r"<td>[^<]*</td>", lambda cell: _NUMBER.sub(r'<span class="number">\g<0></span>', cell[0]), whole)
