"""docs/quickstart.md is true: its code runs as it stands."""

import re
from pathlib import Path

import pandas
from matplotlib.figure import Figure

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"


def test_the_code_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "mask" in capsys.readouterr().out
    assert isinstance(names["table"], pandas.DataFrame)
    assert isinstance(names["figure"], Figure)
