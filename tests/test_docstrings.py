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
SUMMARY = re.compile(
    r"(What|Which|Where|Whether|Who|Whose|Whatever|When|How|Why|That|As|Of|To be)\b"
)
COMMENT = re.compile(r"\s*# (What|Of|Whatever) ")
# "path (str): of the file", "Tensor: that it reads": say "path of the file", "its input".
ENTRY = re.compile(r"\s+\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*(?: \([^)]*\))?: (of|that(?! of)) [^:]")
PHRASES = re.compile(
    r"\bas of :|are answered as|[Hh]eld to \w+ by tests|loses its bearings|of any model of"
    r"|\bof (before|today)\b|what (it|they) (is|are|has|have) of\b|\bwhat there is of\b"
    # "does not tell", "tells no format", "told by": say "does not say", "has no", "see".
    r"|\b[Tt]ells? (?!apart)|\bnot tell\b|\btold by\b|\bat (its|their|the policy's) will\b"
    # "Times are of whole frames": say "Times are for", "have", "belong to".
    r"|\b(is|are|was|were) of (an?|another|different|no|an? \w+|several|whole)\b|\bneed be\b"
    # "It is no file": say "is not a file".
    r"|(?<!here )\b(is|are) no (?!longer|more|less|larger|better|worse|one|need)[a-z]"
    # "Of a camera the newest frame is run": begin with the subject.
    r"|(?<=[a-z)][.;] )Of (an?|what|two|detections)\b"
)
# "What is remembered moves along": begin with a noun. Titles and tables of pages may ask so.
FREE_RELATIVE = re.compile(r"(?<=[a-z)`][.:] )(What|Whatever|Whoever) (?![^.]*\?)")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("projects/BlockCopy/README.md", "configs", "docs", ".github"),
]


def docstrings(nodes):
    for node in nodes:
        if isinstance(node, DEFINITIONS) and (text := ast.get_docstring(node, clean=False)):
            yield node.body[0].lineno, text


def faults(source):
    """Yields the number of a line and the words at fault."""
    kinds = (*DEFINITIONS, ast.Constant)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    for line, text in docstrings(nodes):
        if match := SUMMARY.match(text.strip()):
            yield line, text.strip().splitlines()[0]
        section = None
        for offset, entry in enumerate(text.splitlines()):
            if title := re.fullmatch(r"\s*(Args|Returns|Yields|Raises|Attributes):", entry):
                section = title.group(1)
            elif section and ENTRY.match(entry):
                yield line + offset, entry.strip()
        words = " ".join(text.split())
        if match := PHRASES.search(words) or FREE_RELATIVE.search(words):
            yield line, match.group(0)
    for node in nodes:  # messages and help texts, docstrings once more
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := PHRASES.search(" ".join(node.value.split())):
                yield node.lineno, match.group(0)
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


def vague_helps(source):
    """Yields the number of a line and the help text of an argument that is missing or no noun."""
    for node in ast.walk(ast.parse(source)) if "add_argument" in source else ():
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "add_argument":
            continue
        texts = [keyword.value for keyword in node.keywords if keyword.arg == "help"]
        shared = any(keyword.arg is None for keyword in node.keywords)  # by **options
        if not texts and not shared:
            yield node.lineno, "no help"
        for text in texts:
            words = ast.literal_eval(text) if isinstance(text, ast.Constant) else ""
            if isinstance(text, ast.JoinedStr) and isinstance(text.values[0], ast.Constant):
                words = text.values[0].value
            if re.match(r"(of|in|for|or|what|that|which|from)\b|\(", words):
                yield node.lineno, words


@pytest.mark.skipif(not TRACKED, reason="needs a checkout")
def test_help_texts_say_what_an_argument_is():
    found = [
        f"{name}:{line}: {words}"
        for name in TRACKED
        if (ROOT / name).exists() and not name.startswith("tests/")
        for line, words in vague_helps((ROOT / name).read_text())
    ]
    assert not found, "\n".join(found)
    assert list(vague_helps('p.add_argument("--size", help="of the frames")'))
    assert list(vague_helps('p.add_argument("--size")'))


def prose(text):
    """Yields the paragraphs of a page as one line each, without code."""
    for paragraph in re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n\n"):
        yield re.sub(r"\s+(# )?", " ", paragraph)


@pytest.mark.skipif(not TRACKED, reason="needs a checkout")
def test_pages_and_configs_are_plain():
    paths = [path for page in PAGES for path in (ROOT / page, *(ROOT / page).rglob("*"))]
    found = [
        f"{path.relative_to(ROOT)}: {text[max(0, match.start() - 30) : match.end() + 30]}"
        for path in paths
        if path.suffix in (".md", ".yaml", ".yml")
        for text in prose(path.read_text())
        for match in [*PHRASES.finditer(text), *FREE_RELATIVE.finditer(text)]
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
        'raise ValueError("The name tells no format.")',
        '"""Runs frames. What is remembered moves along."""',
        '"""Reports times, which are of whole frames."""',
        '"""Runs a source. Of a camera the newest frame is run."""',
    ],
)
def test_faults_are_found(source):
    assert list(faults(source))
