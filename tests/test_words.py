"""One word, one meaning: docs/words.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "blockcopy_d2"

# Phrases to avoid, where, and what to say instead. Texts are searched as one line.
FORBIDDEN = [
    # torch.export traces.
    (r"captur\w+ (by|with|through) torch\.export|torch\.export cannot capture", ".", "trace"),
    (r"\bcaptur\w*\b(?! in a CUDA graph|; take a snapshot| CUDA graph)", "sparse", "trace"),
    (r"\bCapture(Error|dModule)\b|\b_?uncapturable\b", ".", "trace"),
    # CUDA graphs are captured.
    (r"record\w* (in|as|into) (a |the )?(CUDA )?graph", ".", "capture"),
    (r"(CUDA graphs?|graph) (is|are|was|were|can) record\w*", ".", "capture"),
    (r"\b(Recorded|FrameRecord)\w+(?<!RecordedFrameResult)\b", ".", "capture"),
    (r"\brecord(?!_event|_stream|\(\))\w*", "modeling/running", "capture"),
    # Programs and float32 values.
    (r"\.plan\b(?!\()|_plan_buffers", "sparse", "schedule"),
    (r"\blower(ed)?_tf32\b", ".", "unlift"),
    # Learners.
    (r"\blearner\.observe\(|OnlineLearner\.observe(?! is now)", ".", "learn"),
]


def texts(folder):
    docs = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"] if folder == "." else []
    for path in [*(PACKAGE / folder).rglob("*.py"), *docs]:
        if path.name != "words.md":
            yield path, re.sub(r"\s+(# )?", " ", path.read_text())


@pytest.mark.parametrize("pattern, folder, instead", FORBIDDEN, ids=lambda x: x[:20])
def test_one_word_has_one_meaning(pattern, folder, instead):
    found = [
        f"{path.relative_to(ROOT)}: {match.group(0)!r}"
        for path, text in texts(folder)
        for match in re.finditer(pattern, text)
    ]
    assert not found, f"Say {instead!r} instead, see docs/words.md: {found}"


def test_words_that_are_forbidden_are_found():
    assert re.search(FORBIDDEN[3][0], "frames are recorded as CUDA graphs")
    assert re.search(FORBIDDEN[0][0], "networks that were captured by torch.export")


@pytest.mark.parametrize("word", ["trace", "plan", "lower", "capture", "record"])
def test_the_page_has_the_word(word):
    assert f"| {word} |" in (ROOT / "docs/words.md").read_text()
