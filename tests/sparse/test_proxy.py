"""A module that stands for another one has all its attributes, and none twice."""

import copy
import io

import pytest
import torch
from torch import nn

from blockcopy_d2.sparse import BlockSparseModule
from blockcopy_d2.sparse.proxy import ModuleProxy


class Detector(nn.Module):
    """Has an attribute of every kind."""

    kind = "detector"

    def __init__(self):
        super().__init__()
        self.threshold = 0.5
        self.backbone = nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    @property
    def device(self):
        return self.mean.device

    @property
    def spoiled(self):
        return self.absent

    @staticmethod
    def postprocess(x):
        return x + 1

    def inference(self, x):
        return self.backbone(x * self.scale) * self.threshold

    def forward(self, x):
        return self.inference(x)


class Counter(ModuleProxy):
    """Has a child and a number of its own."""

    def __init__(self, module):
        super().__init__()
        self.policy = nn.Linear(2, 2)
        self.changes = 0
        self._wrap(module)

    def _wrapped_changed(self):
        self.changes += 1

    def forward(self, x):
        return self._wrapped(x)


@pytest.fixture(params=[Counter, BlockSparseModule])
def proxy(request):
    return request.param(Detector().requires_grad_(False))


def test_all_that_the_wrapped_module_has(proxy):
    wrapped = proxy._wrapped
    for name in dir(wrapped):
        assert hasattr(proxy, name) == (name != "spoiled"), name
    assert set(dir(wrapped)) <= set(dir(proxy))
    assert proxy.threshold == 0.5 and proxy.kind == "detector" and proxy.device.type == "cpu"
    assert proxy.backbone is wrapped.backbone and proxy.scale is wrapped.scale
    assert proxy.postprocess(1) == 2
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(proxy.inference(x), wrapped(x))


def test_what_neither_has_is_an_attribute_error(proxy):
    for name in ("absent", "spoiled", "__len__", "__absent__"):
        assert not hasattr(proxy, name) and getattr(proxy, name, 7) == 7
    with pytest.raises(AttributeError, match=f"{type(proxy).__name__}.*absent.*Detector"):
        _ = proxy.absent
    with pytest.raises(AttributeError):
        del proxy.absent


def test_names_in_the_state_dict_are_the_wrapped_modules(proxy):
    own = {name for name in proxy.state_dict() if not name.startswith("policy.")}
    assert own == set(proxy._wrapped.state_dict())
    names = [name for name, _ in proxy.named_parameters()]
    assert len(names) == len(set(names))
    proxy.load_state_dict({name: x + 1 for name, x in proxy.state_dict().items()})
    assert proxy._wrapped.scale.item() == 2 and proxy._wrapped.mean.item() == 1
    proxy.double()
    assert proxy.inference(torch.rand(1, 3, 2, 2, dtype=torch.double)).dtype == torch.double


@pytest.mark.parametrize("assign", ["__setattr__", "add_module", "set_submodule"])
def test_a_child_is_replaced_in_both(proxy, assign):
    child = nn.Conv2d(3, 6, 1, bias=False)
    getattr(proxy, assign)("backbone", child)
    assert proxy.backbone is proxy._wrapped.backbone is child
    assert dict(proxy.named_children())["backbone"] is child
    assert proxy.inference(torch.rand(1, 3, 2, 2)).shape == (1, 6, 2, 2)
    assert "backbone.bias" not in proxy.state_dict()


def test_values_are_assigned_and_deleted_where_they_are(proxy):
    x = torch.rand(1, 3, 2, 2)
    before = proxy(x)
    proxy.threshold = 1.0
    assert proxy._wrapped.threshold == 1.0
    torch.testing.assert_close(proxy(x), 2 * before)
    proxy.scale = nn.Parameter(torch.full((1,), 3.0))
    proxy.mean = torch.ones(1)
    assert proxy._wrapped.scale is proxy.scale and proxy._wrapped.mean.item() == 1
    del proxy.threshold
    assert not hasattr(proxy, "threshold") and not hasattr(proxy._wrapped, "threshold")
    del proxy.backbone
    assert "backbone" not in dict(proxy.named_children()) and not hasattr(proxy, "backbone")
    with pytest.raises(AttributeError):
        proxy.device = torch.device("cpu")

    proxy.note = "of the proxy"
    assert proxy.note == "of the proxy" and not hasattr(proxy._wrapped, "note")
    del proxy.note
    assert not hasattr(proxy, "note")


def test_the_proxy_hears_of_changes():
    counter = Counter(Detector())
    counter.threshold = 0.1
    counter.backbone = nn.Identity()
    assert counter.changes == 2
    counter.changes = 0
    counter.policy = nn.Linear(3, 3)
    assert counter.changes == 0 and not hasattr(counter._wrapped, "policy")


def by_pickle(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_a_copy_stands_for_a_copy(proxy, duplicate):
    twin = duplicate(proxy)
    assert type(twin) is type(proxy) and twin._wrapped is not proxy._wrapped
    assert twin._parameters is twin._wrapped._parameters
    x = torch.rand(1, 3, 2, 2)
    assert torch.equal(twin(x), proxy(x))
    with torch.no_grad():
        twin.scale.fill_(0)
        twin.backbone.bias.fill_(0)
    assert not twin.inference(x).any() and proxy.inference(x).any()
    assert twin.state_dict().keys() == proxy.state_dict().keys()


def test_children_of_the_same_name_are_refused():
    detector = Detector()
    detector.policy = nn.Identity()
    with pytest.raises(ValueError, match="Detector.*policy.*Counter"):
        Counter(detector)
