"""The activations that close an operator, in float32."""

import triton
import triton.language as tl

# Defaults of the ATen functions, by name: up to two parameters of each.
_PARAMETERS = {
    "hardtanh": (-1.0, 1.0),
    "leaky_relu": (0.01,),
    "elu": (1.0,),
}
SUPPORTED = {"relu", "relu6", "sigmoid", "silu", "hardswish", "hardsigmoid"} | set(_PARAMETERS)


def parameters(activation):
    """(name, first, second parameter) of a program.Activation or None, as activate() takes it."""
    if activation is None:
        return "none", 0.0, 0.0
    arguments = list(activation.arguments)
    if activation.name == "elu" and arguments[1:] not in ([], [1, 1], [1.0, 1.0]):
        raise NotImplementedError(f"elu with scale or input_scale: {arguments}")
    defaults = _PARAMETERS.get(activation.name, ())
    values = [*arguments[: len(defaults)], *defaults[len(arguments) :], 0.0, 0.0]
    return activation.name, float(values[0]), float(values[1])


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """
    Applies an activation from parameters(). NaN stays NaN, as in PyTorch, so that a stale or
    missing feature shows.
    """
    NAME: tl.constexpr = ACTIVATION[0]
    FIRST: tl.constexpr = ACTIVATION[1]
    SECOND: tl.constexpr = ACTIVATION[2]
    if NAME == "relu":
        y = tl.where(y < 0, 0.0, y)
    elif NAME == "relu6":
        y = tl.where(y < 0, 0.0, tl.where(y > 6, 6.0, y))
    elif NAME == "hardtanh":
        y = tl.where(y < FIRST, FIRST, tl.where(y > SECOND, SECOND, y))
    elif NAME == "leaky_relu":
        y = tl.where(y < 0, y * FIRST, y)
    elif NAME == "elu":
        y = tl.where(y < 0, (tl.exp(tl.where(y < 0, y, 0.0)) - 1) * FIRST, y)
    elif NAME == "sigmoid":
        y = 1 / (1 + tl.exp(-y))
    elif NAME == "silu":
        y = y / (1 + tl.exp(-y))
    elif NAME == "hardsigmoid":
        y = _hard_gate(y)
    elif NAME == "hardswish":
        y = y * _hard_gate(y)
    return y


@triton.jit
def _hard_gate(y):
    y = y / 6 + 0.5
    return tl.where(y < 0, 0.0, tl.where(y > 1, 1.0, y))
