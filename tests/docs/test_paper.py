"""The commands of docs/paper.md and docs/networks.md parse, and the keys that they name exist."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from blockcopy_d2.config import KEYS
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/paper.md", "docs/networks.md")


def commands(page):
    """Lists of words: every line of the page's bash blocks, with the variable of loops put in."""
    text = (ROOT / page).read_text()
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = block.replace("\\\n", " ")
        values = re.findall(r"'(\[.*?\])'", block)
        for line in block.splitlines():
            line = line.replace('"$inputs"', f"'{values[0]}'") if values else line
            found.append(shlex.split(line, comments=True))
    return [words for words in found if words]


def scripts():
    """The parsers of run_protocol.py and tools/convert_checkpoint.py."""
    sys.path.insert(0, str(ROOT / "projects" / "BlockCopy"))
    try:
        parsers = {}
        for name in ("projects/BlockCopy/run_protocol.py", "tools/convert_checkpoint.py"):
            spec = importlib.util.spec_from_file_location("script", ROOT / name)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            parser = getattr(module, "get_parser", getattr(module, "argument_parser", None))
            parsers[Path(name).name] = parser()
        return parsers
    finally:
        sys.path.remove(str(ROOT / "projects" / "BlockCopy"))


@pytest.fixture(scope="module")
def parsers():
    found = scripts()
    train = found["train_net.py"] = argparse.ArgumentParser()
    train.add_argument("--config-file", required=True)
    train.add_argument("--eval-only", action="store_true")
    train.add_argument("--num-gpus")
    train.add_argument("opts", nargs="*")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, parsers):
    seen = set()
    for words in commands(page):
        words = words[1:] if words[0] == "python" else words
        script = Path(words[0]).name
        if script not in parsers:
            continue
        seen.add(script)
        args = parsers[script].parse_args(words[1:])
        if args.config_file is not None:
            opts = ["MODEL.DEVICE", "cpu", *args.opts]
            load_config(config_path(args.config_file), opts)
    assert "convert_checkpoint.py" in seen and "train_net.py" in seen
    assert ("run_protocol.py" in seen) == (page == "docs/paper.md")


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page):
    text = (ROOT / page).read_text()
    names = re.findall(r"`(?:MODEL\.BLOCKCOPY\.)?((?:[A-Z_]+\.)+[A-Z_]+)[ `]", text)
    known = set(KEYS) | {key.removeprefix("MODEL.BLOCKCOPY.") for key in KEYS}
    outside = {"MODEL.BLOCKCOPY", "DATASETS.TRAIN", "MODEL.WEIGHTS", "SOLVER.MAX_ITER"}
    assert names and not set(names) - known - outside
