"""Every command of README and docs parses, its configs load, and the keys that pages name exist."""

import argparse
import functools
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.config import KEYS
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = ("", "MODEL.BLOCKCOPY.", "MODEL.BLOCKCOPY.MOTION.")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "projects/BlockCopy/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]


def _words(command):
    """Splits a line of a shell; environment variables in front are dropped."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        words.pop(0)
    return words


def commands(page):
    """Lists of words: lines of the page's bash blocks, and inline code that starts a program."""
    text = (ROOT / page).read_text()
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = block.replace("\\\n", " ")
        values = re.findall(r"'(\[.*?\])'", block)
        for line in block.splitlines():
            line = line.replace('"$inputs"', f"'{values[0]}'") if values else line
            found.append(_words(line))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`(python [^`]*--[^`]+)`", prose):
        found.append(_words(" ".join(code.split())))
    return [words for words in found if words]


def _load(name):
    """Returns the module of a script, which may import its neighbours."""
    folder = str((ROOT / name).parent)
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("script", ROOT / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


@functools.cache
def parser_of(program):
    """Returns the argument parser of a script, or of a module that ``python -m`` runs."""
    if program == "train_net.py":
        train = argparse.ArgumentParser()
        train.add_argument("--config-file", required=True)
        train.add_argument("--eval-only", action="store_true")
        train.add_argument("--num-gpus")
        train.add_argument("opts", nargs="*")
        return train
    if program.endswith(".py"):
        module = _load(program if (ROOT / program).exists() else f"projects/BlockCopy/{program}")
    else:
        package = importlib.util.find_spec(program).submodule_search_locations
        module = importlib.import_module(f"{program}.__main__" if package else program)
    for name in ("get_parser", "argument_parser", "parser", "_parser"):
        found = getattr(module, name, None)
        if found is not None and getattr(found, "__module__", None) == module.__name__:
            return found()
    raise AssertionError(f"{program} has no function that returns its parser")


def _program(words):
    """Returns the program that a command runs, and its arguments; None for other programs."""
    if words[0] == "torchrun":
        words = words[3:]
    if words[0] == "python":
        words = words[2:] if words[1] == "-m" else words[1:]
    ours = words[0].endswith(".py") or words[0].startswith(("blockcopy_d2.", "benchmarks."))
    return (words[0] if ours else None), words[1:]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    seen = set()
    for words in commands(page):
        program, arguments = _program(words)
        if program is None:
            continue
        seen.add(Path(program).name)
        try:
            args = parser_of(program).parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: this command does not parse: {shlex.join(words)}")
        # test_extending.py runs that page, whose policy is registered by a file of the user's.
        if page == "docs/extending.md" or getattr(args, "config_file", None) is None:
            continue
        opts = getattr(args, "opts", None) or []
        opts = [word for word in opts if word != "--opts"]
        load_config(config_path(args.config_file), ["MODEL.DEVICE", "cpu", *opts])
    if page in ("docs/paper.md", "docs/networks.md"):
        assert "convert_checkpoint.py" in seen and "train_net.py" in seen
        assert ("run_protocol.py" in seen) == (page == "docs/paper.md")
    if page in ("docs/quick_start.md", "docs/streaming.md"):
        assert {"demo.py", "train_net.py", "blockcopy_d2.report"} <= seen


def _keys(node, prefix=""):
    """Yields the names of all keys, and groups of keys, of a config."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page):
    text = (ROOT / page).read_text()
    names = re.findall(r"`(?:MODEL\.BLOCKCOPY\.)?((?:[A-Z_]+\.)+[A-Z_]+)[ `]", text)
    keys = set(_keys(load_config()))
    known = keys | {key.removeprefix("MODEL.BLOCKCOPY.") for key in keys}
    assert not set(names) - known
    assert names or page not in ("docs/paper.md", "docs/networks.md", "docs/quick_start.md")


def tables(page):
    """Yields the rows of a page's tables, as dicts by the names of the columns."""
    for table in re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.MULTILINE):
        rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]
        yield from (
            dict(zip(rows[0], row, strict=True)) for row in rows[2:] if "default" in rows[0]
        )


def test_defaults_are_those_of_the_config():
    cfg, seen = get_cfg(), 0
    add_blockcopy_config(cfg)
    for page in PAGES:
        for row in tables(page):
            name, default = next(iter(row.values())).strip("`"), row["default"]
            keys = [prefix + name for prefix in PREFIXES if prefix + name in KEYS]
            assert keys, f"{page}: {name}"
            value = cfg
            for part in keys[0].split("."):
                value = value[part]
            said = re.findall(r"`([^`]+)`", default) or [default]
            assert str(value or "none") in said or str(value) in said, f"{page}: {name} is {value}"
            seen += 1
    assert seen > 15
