"""Settings of a video model: one line in the config, one field, never out of date."""

import copy
import dataclasses

import pytest

from blockcopy_d2.config import KEYS
from blockcopy_d2.engine.acceleration import _OPTIONS
from blockcopy_d2.modeling import FrameGraph, VideoOptions
from blockcopy_d2.policy import EveryKthFrame, MovedDifference
from tests.modeling.running.sides import clip, sides

# Another value of each.
OTHER = {
    "block_size": 32,
    "scene_cut": 0.5,
    "refresh_every": 7,
    "dense_above": 0.9,
    "amp": True,
    "cuda_graph": False,
    "moved_maps": "all",
    "min_moved_stride": 4,
    "max_moved_stride": 8,
    "policy_resize": "nearest",
}


def test_every_option_is_a_config_key_and_one_of_accelerate():
    assert set(OTHER) == {field.name for field in dataclasses.fields(VideoOptions)}
    for name, key in VideoOptions.keys().items():
        assert key in KEYS and _OPTIONS[name] == key
        assert type(getattr(VideoOptions(), name)) is type(KEYS[key].default), name


def test_options_come_from_the_config(folder, built, device):
    side, _ = sides(folder, built, device)
    cfg = copy.deepcopy(side.cfg)
    for name, key in VideoOptions.keys().items():
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[leaf] = OTHER[name]
    assert dataclasses.asdict(VideoOptions.from_config(cfg)) == OTHER


@pytest.mark.parametrize("name", OTHER)
def test_a_change_of_any_option_holds_from_the_next_frame_on(folder, built, device, name):
    _, graph = sides(folder, built, device, learns=False)
    model, before = graph.model, graph.model.options
    for image in clip(device, 2):
        graph.frame(image)
    recorded = FrameGraph.of(model, graph.stream)
    assert recorded._captures
    try:
        setattr(model, name, OTHER[name])
        assert getattr(model, name) == OTHER[name]
        assert model.options == dataclasses.replace(before, **{name: OTHER[name]})
        after = FrameGraph.of(model, graph.stream)
        assert after is None if name == "cuda_graph" else not after._captures
    finally:
        model.options = before


@pytest.mark.parametrize(
    "policy, name, value",
    [(MovedDifference(target=0.5), "age_weight", 2.0), (EveryKthFrame(period=2), "period", 3)],
)
def test_numbers_of_a_policy_do_not_go_stale(folder, built, device, policy, name, value):
    _, graph = sides(folder, built, device, learns=False)
    graph.model.policy = policy
    for image in clip(device, 2):
        graph.frame(image)
    assert FrameGraph.of(graph.model, graph.stream)._captures
    setattr(policy, name, value)
    assert not FrameGraph.of(graph.model, graph.stream)._captures


@pytest.mark.parametrize(
    "name, value",
    [
        ("scene_cut", 2),
        ("refresh_every", -1),
        ("dense_above", float("nan")),
        ("amp", "yes"),
        ("moved_maps", "some"),
        ("min_moved_stride", 0),
        ("max_moved_stride", 12),
    ],
)
def test_a_value_that_an_option_does_not_take_is_named(folder, built, device, name, value):
    side, _ = sides(folder, built, device)
    before = side.model.options
    with pytest.raises(ValueError, match=f"{name} is .*{VideoOptions.keys()[name]}"):
        setattr(side.model, name, value)
    assert side.model.options is before
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.scene_cut = 0.1
