"""
The public API has type hints, which ``py.typed`` ships, and docstrings in Google's
style: every argument under Args, what comes back under Returns or Yields.
"""

import inspect
import re
from pathlib import Path

import pytest

import blockcopy_d2
from blockcopy_d2.modeling import CapturedFrameResult, FrameResult, Task
from blockcopy_d2.policy import Decision, Policy
from blockcopy_d2.sparse import BlockGrid

PACKAGE = Path(blockcopy_d2.__file__).parent
CLASSES = [
    *(BlockGrid, CapturedFrameResult, Decision, FrameResult, Policy, Task),
    blockcopy_d2.VideoPredictor,
]
FUNCTIONS = [
    function
    for name in blockcopy_d2.__all__
    if inspect.isfunction(function := getattr(blockcopy_d2, name))
]
# Attributes of results are described with the class, see FrameResult.
ATTRIBUTES = {f"CapturedFrameResult.{name}" for name in FrameResult.__dataclass_fields__}
MADE_BY_THE_PACKAGE = {"CapturedFrameResult.__init__", "FrameResult.__init__", "Decision.__init__"}
SPECIAL = {"__init__", "__call__", "__getitem__", "__iter__", "__len__"}


def members(cls):
    """Name and function of each public method and property that a class defines itself."""
    for name, value in vars(cls).items():
        if name.startswith("_") and name not in SPECIAL:
            continue
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        value = inspect.unwrap(getattr(value, "func", value))
        # Dataclasses write methods of their own.
        if inspect.isfunction(value) and value.__qualname__.startswith(cls.__name__):
            yield name, value


METHODS = [
    pytest.param(function, id=f"{cls.__name__}.{name}")
    for cls in CLASSES
    for name, function in members(cls)
    if function.__qualname__ not in MADE_BY_THE_PACKAGE
]
ALL = [*(pytest.param(function, id=function.__name__) for function in FUNCTIONS), *METHODS]


def arguments(function):
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.name not in ("self", "cls")]


def sections(function):
    """Title -> text of the sections of a docstring; the summary is under ""."""
    parts = re.split(r"^(Args|Returns|Yields|Raises):", inspect.getdoc(function) or "", flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


@pytest.mark.parametrize("function", ALL)
def test_everything_public_has_type_hints(function):
    missing = [p.name for p in arguments(function) if p.annotation is p.empty]
    returns = inspect.signature(function).return_annotation
    if function.__name__ != "__init__" and returns is inspect.Signature.empty:
        missing.append("return")
    assert not missing


@pytest.mark.parametrize("function", ALL)
def test_everything_public_says_what_it_takes_and_returns(function):
    described = sections(function)
    names = [p.name for p in arguments(function)]
    if function.__name__ in SPECIAL - {"__init__", "__call__"}:
        return
    missing = [name for name in names if not re.search(rf"\b{name}\b", described.get("Args", ""))]
    assert not missing
    returns = inspect.signature(function).return_annotation
    if names and returns not in (None, inspect.Signature.empty):
        assert "Returns" in described or "Yields" in described
    is_attribute = function.__qualname__ in ATTRIBUTES
    assert names or is_attribute or described[""].strip() or "Returns" in described


def test_type_hints_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
    setup = (PACKAGE.parent / "setup.py").read_text()
    assert '"py.typed"' in setup
