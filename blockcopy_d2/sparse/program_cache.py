"""The programs of a module."""

import weakref
from collections import deque

# Programs that are kept though no stream has features of theirs, each for an input size, a block
# size and a precision.
_MAX_IDLE = 8


class ProgramCache:
    """Programs by what they were compiled for.

    The most recently compiled ones are kept, and so are those that any StreamState has features of,
    however many. A copy of a cache is empty: programs hold the weights of the module they are of.
    """

    def __init__(self):
        self._programs = weakref.WeakValueDictionary()
        self._recent = deque(maxlen=_MAX_IDLE)

    def get(self, key):
        """The Program of `key`, or None."""
        return self._programs.get(key)

    def add(self, key, program):
        self._programs[key] = program
        self._recent.append(program)

    def values(self):
        return list(self._programs.values())

    def __len__(self):
        return len(self._programs)

    def clear(self):
        self._programs.clear()
        self._recent.clear()

    def __reduce__(self):
        return ProgramCache, ()
