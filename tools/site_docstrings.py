"""Extension of griffe, which reads docstrings for the site: Sphinx's marks become Markdown."""

import re

import griffe

# Such as :meth:`step`. Of :class:`~blockcopy_d2.sparse.BlockGrid` the last name is shown.
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(?:~[\w.]*\.)?([^`]+)`")
# As in Detectron2: a line "Examples:", a line "::", and code that is indented.
EXAMPLE = re.compile(r"^Examples?:\n::\n((?:(?: {4}.*)?(?:\n|\Z))+)", re.MULTILINE)


class SphinxMarks(griffe.Extension):
    """Rewrites the docstrings of all objects."""

    def on_object(self, *, obj, **kwargs):
        """Rewrites the docstring of one."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(self._fenced, text)

    @staticmethod
    def _fenced(match):
        lines = [line.removeprefix("    ") for line in match.group(1).rstrip().splitlines()]
        return "\n".join(["**Example**", "", "```python", *lines, "```", "", ""])
