"""Tests share traces of modules that are alike, and of no others."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockcopy_d2.sparse.tracing import trace

X = torch.zeros(1, 2, 8, 8)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.register_buffer("shift", torch.ones(1, 2, 1, 1))
        self.table = torch.ones(2, 1, 1)
        self.activation, self.scale = F.relu, 2.0

    def forward(self, x):
        return self.activation(self.conv(x) + self.shift) * self.scale * self.table


def calls(module, x=X):
    return [
        (call.name, {k: v for k, v in call.arguments.items() if not torch.is_tensor(v)})
        for call in trace(module, (x,)).calls
    ]


def change_scale(net, patch):
    net.scale = 3.0


def change_activation(net, patch):
    net.activation = torch.sigmoid


def change_layer(net, patch):
    net.conv.stride = (2, 2)


def change_child(net, patch):
    net.conv = nn.Identity()


def change_class(net, patch):
    patch.setattr(Network, "forward", lambda self, x: self.conv(x))


def change_instance(net, patch):
    net.forward = lambda x: net.conv(x).tanh()


@pytest.mark.parametrize(
    "change",
    [change_scale, change_activation, change_layer, change_child, change_class, change_instance],
)
def test_another_structure_is_another_trace(change, monkeypatch):
    net = Network().eval()
    before = calls(net)
    with monkeypatch.context() as patch:
        change(net, patch)
        assert calls(net) != before
    assert calls(Network().eval()) == before
    assert calls(Network().eval(), X[..., :5])[0] == before[0]
    assert trace(Network().eval(), (X[..., :5],)).shapes != trace(Network().eval(), (X,)).shapes


def test_a_shared_trace_has_the_tensors_of_its_module():
    nets = [Network().eval(), Network().eval(), copy.deepcopy(Network().eval())]
    nets[2].table = torch.full((2, 1, 1), 5.0)
    for net in nets:
        x, values = torch.rand_like(X), {}
        traced = trace(net, (x,))
        values[traced.inputs[0]] = x
        for call in traced.calls:
            values[call.index] = call.evaluate(values)
        with torch.no_grad():
            assert torch.equal(values[traced.outputs[0].index], net(x))
