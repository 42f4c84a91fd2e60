import errno
import os
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import PolicyCheckpointer, WeightsCheckpointer, load_config
from blockcopy_d2.engine.checkpoint import UnreadableCheckpointError
from blockcopy_d2.policy import LearnedPolicy, OnlineLearner
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def cfg(folder):
    switch = ["MODEL.BLOCKCOPY.ENABLED", "True"]
    return load_config(config_path(CONFIG), [*small_model_opts(folder), *switch])


@pytest.fixture
def state(folder):
    return torch.load(folder / "model.pth", weights_only=True)["model"]


def save(state, path):
    torch.save({"model": state}, path)
    return str(path)


def test_a_detector_loads_and_the_policy_may_be_missing(cfg, state):
    model = build_model(cfg)
    WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_half_precision_weights_load(cfg, state, tmp_path):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model = build_model(cfg)
    WeightsCheckpointer(model).load(save(halves, tmp_path / "half.pth"))
    weight = model.backbone.bottom_up.stem.conv1.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["backbone.bottom_up.stem.conv1.weight"].half().float())


def test_missing_parameters_are_named(cfg, state, tmp_path):
    del state["backbone.bottom_up.stem.conv1.weight"]
    path = save(state, tmp_path / "part.pth")
    for model in (build_model(cfg), build_model(base_config(cfg))):
        with pytest.raises(ValueError, match=r"part.pth .*backbone.bottom_up.stem.conv1.weight"):
            WeightsCheckpointer(model).load(path)


def test_parameters_of_another_shape_are_named(cfg, state, tmp_path):
    key = "roi_heads.box_predictor.cls_score.weight"
    state[key] = torch.zeros(81, 16)
    with pytest.raises(ValueError, match=rf"{key} is \(81, 16\), expected \(9, 16\)"):
        WeightsCheckpointer(build_model(cfg)).load(save(state, tmp_path / "coco.pth"))


def test_no_weights_is_an_error(cfg, tmp_path):
    checkpointer = WeightsCheckpointer(build_model(cfg))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        checkpointer.load("")
    with pytest.raises(FileNotFoundError, match="nothing.pth do not exist"):
        checkpointer.load(str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_named(cfg, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.pth"):
        WeightsCheckpointer(build_model(cfg)).load(str(path))


class Bomb:
    def __reduce__(self):
        return (eval, ("1 / 0",))


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_checkpoint_is_executed(cfg, tmp_path, legacy):
    path = tmp_path / "bomb.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Bomb()}))
    else:
        torch.save({"model": Bomb()}, path)
    with pytest.raises(ValueError, match="bomb.pth"):
        WeightsCheckpointer(build_model(cfg)).load(str(path))


def taught(policy, learner, steps=5):
    """Runs some updates on made up frames."""
    from blockcopy_d2.policy import Observation

    for index in range(steps):
        observation = Observation(
            frame=torch.rand(1, 3, 64, 64),
            frame_state=torch.rand(1, 3, 64, 64),
            output=torch.rand(1, 2, 64, 64),
            grid=torch.ones(1, 1, 2, 2),
            frame_index=index + 1,
        )
        with torch.set_grad_enabled(learner.wants_graph()):
            decision = policy(observation)
        learner.observe(decision, torch.rand(1, 2, 2))


def test_policy_and_learner_come_back(tmp_path):
    policy = LearnedPolicy(num_classes=2)
    learner = OnlineLearner(policy, target=0.3)
    taught(policy, learner)
    PolicyCheckpointer(policy, str(tmp_path), learner=learner).save("policy", iteration=4)

    other = LearnedPolicy(num_classes=2)
    other_learner = OnlineLearner(other, target=0.3)
    extra = PolicyCheckpointer(other, learner=other_learner).load(str(tmp_path / "policy.pth"))
    assert extra["iteration"] == 4
    for key, value in policy.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    saved, loaded = learner.state_dict(), other_learner.state_dict()
    assert saved["frames"] == loaded["frames"] == 5
    assert saved["moving_cost"] == loaded["moving_cost"]
    square = saved["optimizer"]["state"][0]["square_avg"]
    assert square.abs().sum() > 0
    assert torch.equal(square, loaded["optimizer"]["state"][0]["square_avg"])


def test_a_policy_for_other_classes_does_not_fit(tmp_path):
    PolicyCheckpointer(LearnedPolicy(num_classes=2), str(tmp_path)).save("policy")
    with pytest.raises(ValueError, match="do not fit.*network.backbone.0.weight"):
        PolicyCheckpointer(LearnedPolicy(num_classes=3)).load(str(tmp_path / "policy.pth"))


def test_a_detector_is_no_policy(cfg):
    with pytest.raises(ValueError, match="parameters are missing"):
        PolicyCheckpointer(LearnedPolicy(num_classes=2)).load(cfg.MODEL.WEIGHTS)


def test_unknown_parameters_are_only_reported(tmp_path, caplog):
    model = nn.Linear(2, 2)
    path = save({**model.state_dict(), "fc1000.weight": torch.zeros(1)}, tmp_path / "more.pth")
    WeightsCheckpointer(model).load(path)
    assert "fc1000" in caplog.text


def test_secrets_of_an_address_of_weights_are_not_told():
    address = "http://u:s3cret@127.0.0.1:1/model.pth?token=s3cret"
    with pytest.raises(OSError, match=r"The weights http://\*\*\*@127.0.0.1:1/model.pth") as caught:
        WeightsCheckpointer(torch.nn.Conv2d(1, 1, 1)).load(address)
    assert "s3cret" not in str(caught.value)


class TestResuming:
    """What is left in the folder of a run, whatever ended it."""

    @pytest.fixture
    def checkpointer(self, tmp_path):
        policy = LearnedPolicy(num_classes=2)
        checkpointer = PolicyCheckpointer(policy, str(tmp_path))
        for iteration in (9, 19, 29):
            checkpointer.save(f"policy_{iteration:07d}", iteration=iteration)
            os.utime(tmp_path / f"policy_{iteration:07d}.pth", (iteration, iteration))
        return checkpointer

    def test_the_tagged_checkpoint_comes_first(self, checkpointer, tmp_path):
        assert checkpointer.resume()["iteration"] == 29
        (tmp_path / "last_checkpoint").write_text("policy_0000009.pth\n")
        assert checkpointer.resume()["iteration"] == 9

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"half"])
    def test_a_damaged_one_falls_back_to_the_newest_readable(
        self, checkpointer, tmp_path, content, caplog
    ):
        for name in ("policy_0000029.pth", "policy_0000019.pth"):
            whole = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(
                whole[: len(whole) // 2] if content == b"half" else content
            )
        with caplog.at_level("INFO"):
            assert checkpointer.resume()["iteration"] == 9
        assert "Cannot resume from" in caplog.text and "policy_0000029.pth" in caplog.text
        assert "Resuming from" in caplog.text and "policy_0000009.pth" in caplog.text

    @pytest.mark.parametrize("tag", [b"", b"policy_00", b"model_final.pth", b"\xff\x00", None])
    def test_a_spoiled_tag_falls_back_to_the_newest(self, checkpointer, tmp_path, tag, caplog):
        # A kill between a checkpoint and its tag, a disk that was full, another program's tag.
        (tmp_path / "model_final.pth").write_bytes(b"a detector")
        (tmp_path / "last_checkpoint").unlink()
        if tag is not None:
            (tmp_path / "last_checkpoint").write_bytes(tag)
        assert checkpointer.resume()["iteration"] == 29
        assert ("last_checkpoint names" in caplog.text) == (tag is not None)

    def test_nothing_to_resume_from_is_said(self, checkpointer, tmp_path, caplog):
        for file in tmp_path.iterdir():
            file.unlink()
        assert checkpointer.resume() is None
        assert f"There is no checkpoint {tmp_path}/policy_*.pth" in caplog.text
        checkpointer.save_dir = str(tmp_path / "missing")
        assert checkpointer.resume() is None

    def test_one_that_can_be_read_but_does_not_fit_is_an_error(self, checkpointer, tmp_path):
        PolicyCheckpointer(LearnedPolicy(num_classes=5), str(tmp_path)).save("policy_final")
        with pytest.raises(ValueError, match="policy_final.pth do not fit"):
            checkpointer.resume()

    def test_a_full_disk_leaves_the_last_checkpoint(self, checkpointer, tmp_path, monkeypatch):
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

        def save(data, file):
            file.write(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", save)
        for name in ("policy_0000029", "policy_0000039"):
            with pytest.raises(OSError, match="No space left"):
                checkpointer.save(name, iteration=39)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
        assert checkpointer.resume()["iteration"] == 29

    def test_a_checkpoint_is_there_before_its_tag(self, checkpointer, tmp_path, monkeypatch):
        def killed(name):
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpointer, "tag_last_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save("policy_0000039", iteration=39)
        assert (tmp_path / "last_checkpoint").read_text() == "policy_0000029.pth"
        assert torch.load(tmp_path / "policy_0000039.pth", weights_only=True)["iteration"] == 39
        assert checkpointer.resume()["iteration"] == 29


def test_loading_again_after_a_failure(cfg, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"broken")
    checkpointer = WeightsCheckpointer(build_model(cfg))
    with pytest.raises(UnreadableCheckpointError):
        checkpointer.load(str(tmp_path / "broken.pth"))
    checkpointer.load(cfg.MODEL.WEIGHTS)
