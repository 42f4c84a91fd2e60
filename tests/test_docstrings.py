"""Docstrings and comments are plain English: verbs first, and an argument says what it is."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# "What a frame gave", "Of the command line", "As :func:`f`": say "The result of a frame", "Returns
# the parser of the command line", "See :func:`f`".
SUMMARY = re.compile(r"(What|Which|Where|Whether|Who|Whose|Whatever|As|Of|To be)\b")
COMMENT = re.compile(r"\s*# (What|Of|Whatever) ")
# "path (str): of the file", "Tensor: that it reads": say "path of the file", "its input".
ENTRY = re.compile(r"\s+\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*(?: \([^)]*\))?: (of|that(?! of)) [^:]")
PHRASES = re.compile(
    r"\bas of :|are answered as|[Hh]eld to \w+ by tests|loses its bearings|of any model of"
    r"|\bof before\b|what (it|they) (is|are|has|have) of\b|\bwhat there is of\b"
)


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node, clean=False)):
            yield node.body[0].lineno, text


def faults(source):
    """Yields the number of a line and the words at fault."""
    for line, text in docstrings(ast.parse(source)):
        if match := SUMMARY.match(text.strip()):
            yield line, text.strip().splitlines()[0]
        section = None
        for offset, entry in enumerate(text.splitlines()):
            if title := re.fullmatch(r"\s*(Args|Returns|Yields|Raises|Attributes):", entry):
                section = title.group(1)
            elif section and ENTRY.match(entry):
                yield line + offset, entry.strip()
        if match := PHRASES.search(" ".join(text.split())):
            yield line, match.group(0)
    before = ""
    for line, text in enumerate(source.splitlines(), 1):
        _, mark, comment = text.partition("# ")
        if mark and (match := PHRASES.search(comment)):
            yield line, match.group(0)
        if COMMENT.match(text) and not before.lstrip().startswith("#"):
            yield line, comment
        before = text


@pytest.mark.skipif(not TRACKED, reason="needs a checkout")
def test_docstrings_are_plain():
    found = [
        f"{name}:{line}: {words}"
        for name in TRACKED
        if (ROOT / name).exists() and ROOT / name != Path(__file__).resolve()
        for line, words in faults((ROOT / name).read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        '"""What one frame of one stream gave."""',
        'def f():\n    """\n    Args:\n        path (str): of the file.\n    """',
        'def f():\n    """Runs.\n\n    Returns:\n        Tensor: that it reads.\n    """',
        "# Results as of :meth:`step`.",
        "x = 1\n    # Of the first frame only.",
        '"""Returns models, which are held to Detectron2 by tests."""',
    ],
)
def test_faults_are_found(source):
    assert list(faults(source))
