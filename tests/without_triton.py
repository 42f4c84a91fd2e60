"""
Runs pytest as where no Triton is installed: python -m tests.without_triton tests/demo/test_demo.py
"""

import sys

import pytest


class _NoTriton:
    """Finds no module of Triton's, before others look for it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide_triton():
    """From now on Triton cannot be imported. It must not have been."""
    assert not any(name.partition(".")[0] == "triton" for name in sys.modules)
    sys.meta_path.insert(0, _NoTriton())


if __name__ == "__main__":
    hide_triton()
    sys.exit(pytest.main(sys.argv[1:]))
