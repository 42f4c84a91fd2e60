"""Frames as graphs on any device: on a CPU the same functions are called instead of replayed."""

import pytest
import torch

from blockcopy_d2.modeling.running import captured_learning
from blockcopy_d2.modeling.running import graph as frame_graph
from blockcopy_d2.policy import information_gain
from tests.replayed_function import ReplayedFunction

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if request.param == "cpu":
        monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)
    return request.param


@pytest.fixture
def replayed_lessons(device, monkeypatch):
    """On a CPU, updates of the learner are captured and replayed operator by operator."""
    if device == "cpu":
        pools = {}
        monkeypatch.setattr(captured_learning, "CapturedFunction", ReplayedFunction)
        monkeypatch.setattr(
            frame_graph.FrameGraph, "_graph_pool", lambda self, model: pools.setdefault(self, [])
        )
        monkeypatch.setattr(information_gain, "_intersections", information_gain._count_in_half)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def built():
    """Models are slow to build; every test gets a policy and settings of its own."""
    return {}
