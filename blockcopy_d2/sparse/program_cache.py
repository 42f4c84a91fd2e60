"""The programs of a module."""

import weakref
from collections import deque

# Number of programs kept although no stream has features of them. A program is for one input size,
# block size and precision.
_MAX_IDLE = 8


class ProgramCache:
    """Programs by the input size, block size and precision that they were compiled for.

    The most recently compiled ones are kept, and all those that any StreamState has features of. A
    copy of a cache is empty, since programs hold the weights of their module.
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
