import copy
import errno
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import PolicyCheckpointer, WeightsCheckpointer, load_config
from blockcopy_d2.engine.checkpoint import UnreadableCheckpointError
from blockcopy_d2.policy import ExpectedGain, LearnedPolicy, OnlineLearner
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
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pt", ".ckpt", ""])
def test_no_code_of_a_checkpoint_is_executed(tmp_path, legacy, suffix):
    path, marker = tmp_path / f"bomb{suffix}", tmp_path / "executed"
    content = {"model": Bomb(marker), "model_state": Bomb(marker)}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UnreadableCheckpointError, match=f"bomb{suffix} .*could execute code"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_no_code_of_a_policy_is_executed(tmp_path, legacy, suffix):
    path, marker = tmp_path / f"bomb{suffix}", tmp_path / "executed"
    content = {"model": LearnedPolicy(num_classes=2).state_dict(), "learner": Bomb(marker)}
    path.write_bytes(pickle.dumps(content)) if legacy else torch.save(content, path)
    with pytest.raises(UnreadableCheckpointError, match="could execute code"):
        PolicyCheckpointer(LearnedPolicy(num_classes=2)).load(str(path))
    assert not marker.exists()


def test_a_policy_saved_as_pkl_loads(tmp_path):
    policy, other = LearnedPolicy(num_classes=2), LearnedPolicy(num_classes=2)
    torch.save(policy.state_dict(), tmp_path / "policy.pkl")
    PolicyCheckpointer(other).load(str(tmp_path / "policy.pkl"))
    for key, value in policy.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_a_pickle_of_the_zoo_loads_and_is_announced(tmp_path, caplog):
    model = nn.Linear(2, 2)
    content = {"model": {"weight": np.ones((2, 2)), "bias": np.ones(2)}, "__author__": "me"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    WeightsCheckpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert model.weight.sum() == 4
    assert "zoo.pkl is a pickle" in caplog.text and "executes code" in caplog.text
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content)[:-20])
    with pytest.raises(UnreadableCheckpointError, match="zoo.pkl is not a readable checkpoint"):
        WeightsCheckpointer(model).load(str(tmp_path / "zoo.pkl"))


def test_a_checkpoint_of_pycls_loads(tmp_path):
    path, model = tmp_path / "regnet.pyth", nn.Sequential(nn.Linear(2, 2))
    state = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}
    torch.save({"model_state": state}, path)
    WeightsCheckpointer(model).load(str(path))
    assert model[0].weight.sum() == 4
    torch.save(state, path)
    with pytest.raises(UnreadableCheckpointError, match="regnet.pyth is a NoneType"):
        WeightsCheckpointer(model).load(str(path))


@pytest.mark.parametrize(
    "content", [[1], torch.ones(2), {"model": 3}, {"model": {"weight": "x"}}, {"model": {1: None}}]
)
def test_what_has_no_parameters_by_name_is_told(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UnreadableCheckpointError, match="odd.pth .*parameters by name"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize(
    "weight, kind", [(torch.ones(2, 2) + 1j, "complex"), (torch.eye(2).to_sparse(), "sparse")]
)
def test_parameters_are_real_numbers(tmp_path, weight, kind):
    """PyTorch would leave out the imaginary part."""
    torch.save({"model": {"weight": weight, "bias": torch.ones(2)}}, tmp_path / "odd.pth")
    with pytest.raises(UnreadableCheckpointError, match=f"weight in .*odd.pth is {kind}"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameters_that_are_not_finite_are_named(tmp_path, value, dtype):
    state = {"weight": torch.ones(2, 2, dtype=dtype), "bias": torch.ones(2, dtype=dtype)}
    state["weight"][1, 0] = value
    path = save(state, tmp_path / "diverged.pth")
    with pytest.raises(UnreadableCheckpointError, match=r"diverged.pth are not finite \(weight\)"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(path)


def test_parameters_that_are_too_large_for_the_model_are_named(tmp_path):
    state = {"weight": torch.full((2, 2), 1e300, dtype=torch.float64), "bias": torch.ones(2)}
    with pytest.raises(UnreadableCheckpointError, match="are not finite"):
        WeightsCheckpointer(nn.Linear(2, 2)).load(save(state, tmp_path / "large.pth"))


def test_statistics_that_are_not_finite_are_named(tmp_path):
    norm = nn.BatchNorm2d(2)
    norm.running_var[0] = math.inf
    with pytest.raises(UnreadableCheckpointError, match="running_var"):
        WeightsCheckpointer(nn.BatchNorm2d(2)).load(save(norm.state_dict(), tmp_path / "n.pth"))


def test_a_flipped_bit_of_the_weights_is_noticed(tmp_path):
    model = nn.Linear(64, 64)
    path = tmp_path / "model.pth"
    save(model.state_dict(), path)
    whole = path.read_bytes()
    start = whole.index(model.weight.detach().numpy().tobytes())
    for offset in (0, 5000, 16000):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UnreadableCheckpointError, match="model.pth .*CRC"):
            WeightsCheckpointer(nn.Linear(64, 64)).load(str(path))


def test_a_full_disk_is_named_and_leaves_earlier_checkpoints(tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    program = """
import resource, signal, sys
from torch import nn
from blockcopy_d2.engine import PolicyCheckpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saver = PolicyCheckpointer(nn.Linear(64, 64), sys.argv[1])
saver.save("policy_0000001")
saver.save("policy_final")
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
for name in ("policy_0000002", "policy_final"):
    try:
        saver.save(name)
    except OSError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    names = [tmp_path / f"{name}.pth" for name in ("policy_0000002", "policy_final")]
    expected = [f"The checkpoint {path} cannot be written: File too large." for path in names]
    assert [line.partition(" Earlier")[0] for line in done.stdout.splitlines()] == expected
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["last_checkpoint", "policy_0000001.pth", "policy_final.pth"]
    model = nn.Linear(64, 64)
    assert PolicyCheckpointer(model, str(tmp_path)).resume() is not None


def test_a_checkpoint_without_sums_loads(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.serialization.set_crc32_options(False)
    try:
        save(model.state_dict(), tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    WeightsCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert torch.equal(other.weight, model.weight)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """A checkpoint of a policy and its learner in both of torch's formats."""
    folder = tmp_path_factory.mktemp("whole")
    policy = LearnedPolicy(num_classes=2)
    learner = OnlineLearner(policy, target=0.3)
    PolicyCheckpointer(policy, str(folder), learner=learner).save("policy", iteration=4)
    content = torch.load(folder / "policy.pth", weights_only=True)
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return [folder / "policy.pth", folder / "legacy.pth"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_policy_is_named_or_finite(whole_files, tmp_path_factory, data):
    whole = data.draw(st.sampled_from(whole_files)).read_bytes()
    # Records other than numbers lie at both ends.
    place = data.draw(st.one_of(st.integers(-3000, 3000), st.integers(0, 2**31))) % len(whole)
    damaged = bytearray(whole[:place] if data.draw(st.booleans()) else whole)
    damaged[place : place + 4] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    path.write_bytes(damaged)
    policy = LearnedPolicy(num_classes=2)
    learner = OnlineLearner(policy, target=0.3)
    try:
        PolicyCheckpointer(policy, learner=learner).load(str(path))
    except ValueError as error:
        assert "fuzzed.pth" in str(error) or "state of the learner" in str(error)
    assert learner.optimizer.param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize(
    "part, value",
    [
        ("moving_cost", math.nan),
        ("moving_cost", "x"),
        ("frames", -1),
        ("frames", 1.5),
        ("optimizer", {}),
        ("optimizer", None),
        ("square_avg", torch.full((1,), math.inf)),
        ("square_avg", torch.full((1,), -1.0)),
        ("square_avg", torch.ones(7, 7)),
    ],
)
def test_a_state_of_the_learner_that_cannot_be_is_told(part, value):
    learner = OnlineLearner(LearnedPolicy(num_classes=2), target=0.3)
    state = copy.deepcopy(learner.state_dict())
    if part == "square_avg":
        state["optimizer"]["state"][1][part] = value
    else:
        state[part] = torch.tensor(value) if part == "moving_cost" and value != "x" else value
    with pytest.raises(ValueError, match="state of the learner"):
        learner.load_state_dict(state)
    del state["frames"]
    with pytest.raises(ValueError, match="state of the learner"):
        learner.load_state_dict(state)


def test_the_settings_of_a_learner_are_its_own():
    policy = LearnedPolicy(num_classes=2)
    saved = OnlineLearner(policy, target=0.3, learning_rate=1e-2).state_dict()
    learner = OnlineLearner(policy, target=0.3, learning_rate=1e-3)
    learner.load_state_dict(saved)
    assert learner.optimizer.param_groups[0]["lr"] == 1e-3


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
        learner.learn(decision, torch.rand(1, 2, 2))


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


def test_weights_of_another_policy_name_the_key(tmp_path):
    PolicyCheckpointer(LearnedPolicy(num_classes=2), str(tmp_path)).save("policy")
    with pytest.raises(ValueError, match="network.correction.*ExpectedGain: set .*POLICY.NAME to"):
        PolicyCheckpointer(ExpectedGain(target=0.3)).load(str(tmp_path / "policy.pth"))


def test_a_policy_that_expects_gains_fits_any_model(tmp_path):
    policy = ExpectedGain(target=0.3, pixel_std=(1.0, 1.0, 1.0))
    policy.network.correction.data.uniform_()
    PolicyCheckpointer(policy, str(tmp_path)).save("policy")
    other = ExpectedGain(target=0.1, pixel_std=(57.0, 57.0, 58.0))
    PolicyCheckpointer(other).load(str(tmp_path / "policy.pth"))
    assert torch.equal(other.network.correction, policy.network.correction)
    assert other.target == 0.1


def test_a_whole_video_model_has_a_policy(tmp_path):
    state = {"policy.network.correction": torch.arange(8.0), "backbone.conv.weight": torch.ones(2)}
    torch.save({"model": state, "iteration": 3}, tmp_path / "model.pth")
    policy = ExpectedGain(target=0.3)
    PolicyCheckpointer(policy).load(str(tmp_path / "model.pth"))
    assert policy.network.correction.tolist() == [*range(8)]


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
    """The folder of a run that ended in any way."""

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

    def test_a_diverged_one_falls_back_to_the_newest_finite(self, checkpointer, caplog):
        next(checkpointer.model.parameters()).data[0] = math.nan
        checkpointer.save("policy_0000039", iteration=39)
        assert checkpointer.resume()["iteration"] == 29
        assert "policy_0000039.pth" in caplog.text and "not finite" in caplog.text

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
