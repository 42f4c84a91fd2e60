import pytest
import torch
from detectron2.config import get_cfg

from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.policy import POLICY_REGISTRY, LearnedPolicy, OnlineLearner, build_policy


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    return cfg


@pytest.mark.parametrize(
    "name",
    ["LearnedPolicy", "AllBlocks", "NoBlocks", "RandomBlocks", "FrameDifference", "EveryKthFrame"],
)
def test_every_policy_is_built_by_name(cfg, name):
    cfg.MODEL.BLOCKCOPY.POLICY.NAME = name
    policy = build_policy(cfg, num_classes=8)
    assert type(policy).__name__ == name
    assert policy.learns == (name == "LearnedPolicy")
    assert (len(policy.state_dict()) > 0) == policy.learns


def test_the_config_reaches_the_policies(cfg):
    options = cfg.MODEL.BLOCKCOPY
    options.TARGET, options.POLICY.PERIOD, options.POLICY.SEED = 0.7, 5, 11
    cfg.MODEL.PIXEL_STD = [58.0, 29.0, 58.0]
    build = {name: POLICY_REGISTRY.get(name)(cfg, num_classes=4) for name, _ in POLICY_REGISTRY}
    assert build["RandomBlocks"].target == build["FrameDifference"].target == 0.7
    assert build["EveryKthFrame"].period == 5
    network = build["LearnedPolicy"].network
    assert network.backbone[0].weight.shape[1] == 7 + 4
    assert network.pixel_scale.flatten().tolist() == [1.0, 0.5, 1.0]
    assert build["LearnedPolicy"]._uniform.seed == 11


def test_the_config_reaches_the_learner(cfg):
    cfg.MODEL.BLOCKCOPY.TARGET = 0.4
    cfg.MODEL.BLOCKCOPY.LEARNER.LR = 0.5
    cfg.MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY = 2
    learner = OnlineLearner(cfg, LearnedPolicy(num_classes=1))
    assert (learner.target, learner.update_every, learner.cost_weight) == (0.4, 2, 5.0)
    group = learner.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 1e-3)
    assert isinstance(learner.optimizer, torch.optim.RMSprop)


def test_an_unknown_policy_is_named(cfg):
    cfg.MODEL.BLOCKCOPY.POLICY.NAME = "Oracle"
    with pytest.raises(KeyError, match="Oracle"):
        build_policy(cfg, num_classes=1)
