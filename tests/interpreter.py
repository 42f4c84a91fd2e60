"""Triton's interpreter without work that no test sees."""

import dataclasses

from triton import language as tl
from triton.runtime import interpreter


def make_faster():
    """
    Interpreted kernels take a third of the time.

    The interpreter computes whether sums and products of integers overflow, which is most of its
    work, and throws the answer away unless it debugs. It patches the language anew whenever a
    kernel calls a function, where the kernel has it patched. And for every value it makes a type
    anew, with a name and a shape that other values have, too.
    """
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    _keep_types()
    _keep_numpy_types()

    if not hasattr(interpreter, "_LangPatchScope"):  # of another Triton
        return
    patch = interpreter._patch_lang

    def patch_once(function):
        languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if languages and not any(tl.core.is_builtin(x.load) for x in languages):
            return interpreter._LangPatchScope()
        return patch(function)

    interpreter._patch_lang = patch_once


def _keep_types():
    """Types of blocks of one shape and element, and their tensors, share their attributes."""
    make_type, make_tensor, known, of_numbers = tl.block_type.__init__, tl.tensor.__init__, {}, {}

    def type_of(self, element_ty, shape):
        lengths = tuple(tl.core._unwrap_if_constexpr(length) for length in shape)
        kind = (type(element_ty), *(getattr(element_ty, x, None) for x in _OF_ELEMENTS))
        if (kind, lengths) not in known:
            make_type(self, element_ty, shape)
            known[kind, lengths] = {**vars(self), "of_tensors": {}}
        vars(self).update(known[kind, lengths])

    def tensor_of(self, handle, type):
        # A tensor that is a single number has the shape of all others.
        shared = vars(type).get("of_tensors", of_numbers)
        if shared:
            vars(self).update(shared, handle=handle, type=type, dtype=type.scalar)
            return
        make_tensor(self, handle, type)
        if shared is not of_numbers or not type.is_block():
            shared.update(vars(self))

    tl.block_type.__init__, tl.tensor.__init__ = type_of, tensor_of


# Attributes that differ between types of elements.
_OF_ELEMENTS = ("name", "address_space", "const")


def _keep_numpy_types():
    """The table of NumPy's types is not built again for every look-up."""
    look_up, known = interpreter._get_np_dtype, {}

    def kept(dtype):
        element = dtype.scalar
        if element.name not in known:
            known[element.name] = look_up(element)
        return known[element.name]

    interpreter._get_np_dtype = kept
