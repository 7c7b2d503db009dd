"""The site: every page is on it, links lead somewhere, and what pages quote is what the source says.

None of this needs mkdocs, but for the test that builds the site.
"""

import ast
import html
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from markdown import Markdown

import gradvar

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

sys.path.insert(0, str(ROOT / "scripts"))
examples = importlib.import_module("examples")
pages = importlib.import_module("pages")
reference = importlib.import_module("reference")
site_hooks = importlib.import_module("site_hooks")
sys.path.pop(0)


def text_of(path):
    return path.read_text(encoding="utf-8")


def without_code(text):
    """Leave the prose: no fenced blocks, no code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def named(path):
    return str(path.relative_to(ROOT))


def pages_of(entries):
    for entry in entries:
        for value in [entry] if isinstance(entry, str) else entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_every_page_is_in_the_navigation_once():
    assert sorted(pages_of(CONFIG["nav"])) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@cache
def anchors_of(path):
    """Anchors of a page's headings, as the code host makes them and as Python-Markdown does."""
    headings = re.findall(
        r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", text_of(path), flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE
    )
    host = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    made = Markdown(extensions=["toc"])
    made.convert("\n\n".join(f"# {heading}" for heading in headings))
    return host & {token["id"] for token in flattened(made.toc_tokens)}


def flattened(tokens):
    for token in tokens:
        yield token
        yield from flattened(token["children"])


@pytest.mark.parametrize("path", READ, ids=named)
def test_links_and_pictures_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(path))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        leads = (path.parent / place).resolve() if place else path
        assert leads.exists(), target
        assert not anchor or anchor in anchors_of(leads), target


def test_links_that_leave_the_pages_become_text_on_the_site():
    page = "[a](b.md) [`c`](../recipes/c.yaml) [d](../README.md#x) ![e](e.png) [f](https://x.org/f)"
    assert site_hooks.without_ways_out(page, "a.md") == "[a](b.md) `c` d ![e](e.png) [f](https://x.org/f)"
    assert site_hooks.without_ways_out("[a](../a.md) [b](../../b)", "commands/x.md") == "[a](../a.md) b"


def test_pages_are_prepared_for_the_site():
    class page:  # noqa: N801  (what mkdocs calls it)
        class file:  # noqa: N801
            src_uri = "reference/x.md"

    text = "a\n\n<!-- code host only -->\n\nb\n\n<!-- end -->\n\n[c](../../d)\n"
    assert site_hooks.on_page_markdown(text, page) == "a\n\nc\n"
    pictures = "![a](../figures/a.png) [b](../../figures/README.md)"
    assert site_hooks.on_page_markdown(pictures, page) == "![a](figures/a.png) b"
    assert site_hooks.on_page_content(r"<td><code>\|x\|</code> \|</td>") == r"<td><code>|x|</code> \|</td>"
    whole = '<span class="number">{}</span>'.format
    kept = f"<td>1 {whole('[-0.2, 3e-05]')}</td><td>{whole('2e-08')} ({whole('1.0–1.5')})</td>"
    assert site_hooks.on_page_content("<td>1 [-0.2, 3e-05]</td><td>2e-08 (1.0–1.5)</td>") == kept
    for prose in ("<td>a – b, [c], 4-5</td>", "<p>2e-08</p>"):
        assert site_hooks.on_page_content(prose) == prose


HEADINGS = ["Example", "How to read it", "What to do with it", "Options", "What can go wrong"]


@pytest.mark.parametrize("name", reference.commands())
def test_the_page_of_a_command_begins_with_its_question_and_shows_what_it_prints(name):
    page = text_of(DOCS / "commands" / f"{name}.md")
    assert re.match(rf"# gradvar {name}\n\n\*\*[A-Z][^*]+\?\*\*\n\n", page)
    assert [h for h in re.findall(r"^## (.*)", page, flags=re.MULTILINE) if h in HEADINGS] == HEADINGS
    shown = examples.BLOCK.findall(page)
    assert any(f"gradvar {name}" in block for block in shown)
    assert all(examples.COMMAND.sub("", block).strip() for block in shown)
    assert f"]({name}.md)" in text_of(DOCS / "commands" / "index.md")
    assert f"](commands/{name}.md)" in text_of(DOCS / "index.md")


LISTS = re.compile(r"^(?!\s|[-*|>#]|\d+\. |$|<).*\n(?:[-*] |1\. )", flags=re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_what_the_code_host_reads_as_a_list_the_site_does_too(path):
    """Python-Markdown wants a blank line before a list, and four blanks before one inside."""
    prose = without_code(text_of(path))
    assert not LISTS.findall(prose)
    assert not re.findall(r"^ {1,3}[-*] .*", prose, flags=re.MULTILINE)


def test_the_tables_of_options_and_keys_are_those_of_the_source(tmp_path):
    """`python scripts/reference.py` writes them."""
    found = reference.tables()
    assert {path.stem for path in found} == {*reference.commands(), "recipe"}
    for path, tables in found.items():
        copy = tmp_path / path.name
        copy.write_text(text_of(path), encoding="utf-8")
        pages.fill(copy, tables)
        assert text_of(copy) == text_of(path), path


def test_every_option_is_in_the_help():
    """The tables are made from the functions; the help is made by typer."""
    from typer.testing import CliRunner

    from gradvar.cli import app

    for name, command in reference.commands().items():
        shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200).output
        options = re.findall(r"^\| `(--[\w-]+)", reference.options_of(command), flags=re.MULTILINE)
        assert options
        assert sorted(options) == sorted(set(re.findall(r"^ *(--[\w-]+)", shown, flags=re.MULTILINE)) - {"--help"}), (
            name
        )


def quoted_commands():
    """Every command line of gradvar's in the blocks of the pages and of the README."""
    for path in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"^```(?:console|bash)?\n(.*?)^```", text_of(path), flags=re.DOTALL | re.MULTILINE):
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                if found := re.search(r"(?:^|-m |\$ |do )(gradvar [a-z][^;>#]*)", line):
                    yield pytest.param(found[1], id=f"{path.stem}: {found[1][:60]}")


@pytest.mark.parametrize("line", list(quoted_commands()))
def test_quoted_commands_are_ones_that_the_command_line_takes(line):
    _, name, *words = shlex.split(line)
    if name == "COMMAND":
        return
    command = reference.commands()[name]
    table = reference.options_of(command)
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    assert flags <= set(re.findall(r"^\| `(--[\w-]+)", table, flags=re.MULTILINE))


def test_numbers_that_the_readme_has_too_are_the_same():
    home = re.findall(r"^```\n(.*?)^```", text_of(DOCS / "index.md"), flags=re.DOTALL | re.MULTILINE)
    assert len(home) == 1
    assert home[0] in text_of(ROOT / "README.md")


@cache
def said():
    """All texts in the source that are long enough to tell, as patterns."""
    found = []
    for path in sorted((ROOT / "gradvar").rglob("*.py")):
        for node in ast.walk(ast.parse(text_of(path))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if not all(isinstance(part, ast.FormattedValue | ast.Constant) for part in parts):
                continue
            fixed = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            if sum(map(len, fixed)) >= 15:
                pattern = (re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts)
                found.append(re.compile("".join(pattern), flags=re.DOTALL))
    return found


def is_said(message):
    """Whether a text of the source makes a message, or the end of it behind a place and a colon."""
    ends = [message, *(message[at + 2 :] for at in (m.start() for m in re.finditer(": ", message)))]
    return any(pattern.fullmatch(end) for end in ends for pattern in said())


def quoted_messages():
    page = text_of(DOCS / "troubleshooting.md")
    blocks = re.findall(r"^```output\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", quoted_messages())
def test_messages_that_troubleshooting_quotes_are_in_the_source(line):
    assert is_said(re.sub(r"^(gradvar|note): ", "", line))


def test_a_message_that_nobody_says_is_noticed():
    assert len(quoted_messages()) > 50
    assert not is_said("--sentences 1: the data variance needs at least 3 sentences")
    assert not is_said("no checkpoint at 'x': no such folder; give another")


ROLE = re.compile(site_hooks.ROLE)


def roles():
    for path in sorted((ROOT / "gradvar").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for _, name in ROLE.findall(text_of(path)):
            yield module, name


def resolved(name):
    """Import what a full name stands for, or say that there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


def test_full_names_in_docstrings_are_names_of_something():
    """Those that are followed on the site; short ones are read beside what they stand for."""
    full = sorted({site_hooks.target_of(name) for _, name in roles() if "." in site_hooks.target_of(name)})
    ours = [name for name in full if name.startswith("gradvar.")]
    assert len(ours) > 20
    assert [name for name in ours if not resolved(name)] == []


def test_roles_become_links_where_they_lead_and_code_elsewhere():
    made = Markdown(extensions=[site_hooks.Roles()]).convert(
        "See :class:`~gradvar.masking.scores.Score`, :func:`compare` or :meth:`at`."
    )
    assert made == (
        '<p>See <autoref identifier="gradvar.masking.scores.Score" optional="optional"><code>Score</code></autoref>, '
        '<autoref identifier="gradvar.compare" optional="optional"><code>compare</code></autoref> or '
        '<autoref identifier="at" optional="optional"><code>at</code></autoref>.</p>'
    )


def test_every_public_name_is_in_the_reference():
    whole = "".join(text_of(path) for path in PAGES)
    listed = re.findall(r"^::: ([\w.]+)$", whole, flags=re.MULTILINE)
    assert {f"gradvar.{name}" for name in gradvar.__all__} <= set(listed)
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not resolved(name)] == []


def test_blocks_that_are_run_are_taken_apart_and_put_together():
    block = "$ gradvar a --x \\\n    1\nsaid\n\n$ gradvar b\nmore\n"
    assert examples.commands_of(block) == ["gradvar a --x 1", "gradvar b"]


LOADS = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not here; `make docs` installs it")
def test_the_site_is_built_without_warnings_and_loads_nothing_from_a_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for path in [*(tmp_path / "site").rglob("*.html"), *(tmp_path / "site").rglob("*.css")]:
        assert not LOADS.findall(text_of(path)), path
    for path in (tmp_path / "site").rglob("*.html"):
        assert not ROLE.findall(html.unescape(text_of(path))), path
