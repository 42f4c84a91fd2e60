"""A config key: its default and the values it takes, declared together and checked in one place."""

import difflib
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Key",
    "channels",
    "check_registered",
    "choice",
    "flag",
    "list_of",
    "number",
    "power_of_two",
    "text",
    "whole",
]

# Counts and ages are int32 on the device.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Key:
    """
    Attributes:
        default: default of the key, of its type.
        allowed (str): the values it takes, in words that follow "it must be".
        cast (callable): converts a value to the key's type; returns None for another type.
        holds (callable): returns whether a value of the key's type is allowed.
    """

    default: object
    allowed: str
    cast: Callable
    holds: Callable = lambda value: True

    def check(self, name, value):
        """
        Args:
            name (str): name of the key, for the error.
            value: value of any type.

        Returns:
            ``value``, as the key's type.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        typed = self.cast(value)
        if typed is None or not self.holds(typed):
            shown = _abridge(repr(value if typed is None else typed))
            raise ValueError(f"{name} is {shown}; it must be {self.allowed}.")
        return typed


def flag(default):
    """A bool."""
    return Key(default, "True or False", lambda x: x if isinstance(x, bool) else None)


def whole(default, *, least, most=_MOST, note=""):
    """An int within [least, most]; ``note`` says more about what is allowed."""
    allowed = f"a whole number, at least {least}"
    allowed += "" if most == _MOST else f" and at most {most}"
    return Key(default, allowed + note, _as_int, lambda x: least <= x <= most)


def power_of_two(default, *, least, most, note=""):
    """An int."""
    return Key(
        default,
        f"a power of two from {least} to {most}{note}",
        _as_int,
        lambda x: least <= x <= most and x & (x - 1) == 0,
    )


def number(default, *, least=0, most=math.inf, open_ends=False, note=""):
    """
    A finite float, given as any real number, within [least, most]. With ``open_ends`` the bounds
    themselves are excluded.
    """
    ends = "()" if open_ends else "[]"
    bound = f"within {ends[0]}{least}, {most}{ends[1]}"
    if most == math.inf:
        bound = f"above {least}" if open_ends else f"at least {least}"

    def holds(x):
        inside = least < x < most if open_ends else least <= x <= most
        return math.isfinite(x) and inside

    return Key(default, f"a finite number {bound}{note}", _as_float, holds)


def choice(default, *others):
    """One of a few values of the same type, the default among them."""
    known = (default, *others)
    cast = _as_int if isinstance(default, int) else _as_str
    allowed = f"one of {', '.join(map(str, known))}"
    return Key(default, allowed, cast, lambda x: x in known)


def text(default, *, allowed="a text"):
    """A str, or a path in place of one; empty only if the default is."""
    may_be_empty = default == ""
    return Key(
        default, allowed, _as_str, lambda x: "\0" not in x and bool(may_be_empty or x.strip())
    )


def channels(default):
    """An int, of channels of a layer."""
    return whole(default, least=1, most=2**16)


def list_of(default, element, *, length=None, least=0, distinct=False):
    """
    A list of at least ``least`` elements, with ``distinct`` of different ones; ``element`` is a key
    that describes each of them.
    """

    def cast(value):
        if not isinstance(value, list | tuple):
            return None
        typed = [element.cast(x) for x in value]
        return None if any(x is None for x in typed) else typed

    def holds(value):
        fits = len(value) >= least and length in (None, len(value))
        fits = fits and not (distinct and len(set(value)) < len(value))
        return fits and all(map(element.holds, value))

    count = f"at least {least} element{'s' * (least > 1)}, " if least else ""
    count = count if length is None else f"{length} elements, "
    count += "each at most once, " if distinct else ""
    return Key(default, f"a list, {count}each of it {element.allowed}", cast, holds)


def _as_int(value):
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if is_whole else None


def _as_float(value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _as_str(value):
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return value if isinstance(value, str) else None


def _abridge(text, most=100):
    return text if len(text) <= most else f"{text[:most]}..."


def check_registered(key, name, registry, also=()):
    """
    Args:
        key (str): full name of a config key.
        name (str): its value.
        registry (Registry): the registry that must hold the name.
        also (sequence[str]): further values to accept.

    Raises:
        ValueError: there is no such name. The message has the closest one, and all others.
    """
    known = sorted([*(known for known, _ in registry), *also])
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{key} is {name!r}; it must be one of {', '.join(known)}.{hint}")
