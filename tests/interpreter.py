"""Triton's interpreter without work that no test sees."""

import dataclasses

from triton import language as tl
from triton.runtime import interpreter


def make_faster():
    """
    Halves the time of interpreted kernels.

    The interpreter computes whether sums and products of integers overflow, which is most of its
    work, and throws the answer away unless it debugs. And it patches the language anew whenever a
    kernel calls a function, where the kernel has it patched.
    """
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    if not hasattr(interpreter, "_LangPatchScope"):  # of another Triton
        return
    patch = interpreter._patch_lang

    def patch_once(function):
        languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if languages and not any(tl.core.is_builtin(x.load) for x in languages):
            return interpreter._LangPatchScope()
        return patch(function)

    interpreter._patch_lang = patch_once
