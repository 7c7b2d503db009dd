"""Tables that are put into a page between markers."""

import re
from collections.abc import Mapping
from pathlib import Path


def fill(path: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->` of a page.

    Args:
        path: The page.
        tables: New text by name.

    Raises:
        SystemExit: If the page has not one place for each.
    """
    page = path.read_text()
    for name, text in tables.items():
        block = f"<!-- {name} -->\n\n{text}\n\n<!-- end -->"
        page, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{path} has {count} places for the table '{name}'; give it one")
    path.write_text(page)
