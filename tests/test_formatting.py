"""``ruff format`` decides on lines; only tables of config keys stay as they are written."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
).stdout
# Such as "MODEL.BLOCKCOPY.TARGET".
CONFIG_KEY = re.compile(r'"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+"')
MARK = "# fmt: " + "skip"


def statement_of(lines, last):
    """The lines of the statement that ends in a line."""
    first, indent = last - 1, len(lines[last]) - len(lines[last].lstrip())
    while first >= 0 and (not lines[first].strip() or lines[first].startswith(" " * (indent + 1))):
        first -= 1
    return "\n".join(lines[first : last + 1])


@pytest.mark.skipif(not TRACKED, reason="needs a checkout")
def test_only_tables_of_config_keys_keep_their_lines():
    for name in TRACKED.split():
        lines = (ROOT / name).read_text().splitlines() if (ROOT / name).exists() else []
        assert not any("# fmt: " + "off" in line for line in lines), name
        for number, line in enumerate(lines):
            if line.endswith(MARK):
                where = f"{name}:{number + 1}"
                assert not name.startswith("blockcopy_d2/"), where
                assert CONFIG_KEY.search(statement_of(lines, number)), where
