"""The benchmark of streams, on a small model and a CPU."""

import pytest
import torch

from benchmarks import streams
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling.running import graph as frame_graph
from blockcopy_d2.resources import config_path
from tests.small_model import CONFIG, small_model_opts


@pytest.mark.parametrize(
    "policy", [pytest.param("LearnedPolicy", marks=pytest.mark.slow), "ExpectedGain"]
)
def test_what_is_measured(tmp_path, monkeypatch, policy):
    monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)
    opts = ["MODEL.BLOCKCOPY.ENABLED", "True", "MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching"]
    opts += ["MODEL.BLOCKCOPY.POLICY.NAME", policy]
    cfg = load_config(config_path(CONFIG), [*small_model_opts(tmp_path), *opts])
    images = list(torch.randint(0, 256, (2, 3, 128, 256), dtype=torch.uint8))
    results = {}
    for number in (2, 1):
        options = {"rounds": 2, "shares": ("0.3", "0.15"), "device": "cpu"}
        measured = streams.measure(cfg, images, number, torch.float32, **options)
        assert set(measured["blockcopy"]) == {"0.3", "0.15", "policy"}
        for times in measured["blockcopy"].values():
            assert 0 < times["network_ms"] < 1000 * times["frame_ms"]
        # Two and one of 2 x 4 blocks.
        assert measured["executed"]["0.3"] == 0.25 and measured["executed"]["0.15"] == 0.125
        results = streams.merged(results, number, measured)
    assert list(results["blockcopy"]) == ["1", "2"]
    dense = {"network_ms": 1.0, "frame_ms": 3.0, "how": "cuDNN"}
    results = streams.merged(results, 2, {**measured, "memory_mb": 500, "best_dense": dense})
    assert results["best_dense"] == {"2": dense} and results["memory_mb_per_stream"] == 250
    assert results["cameras_at_25"]["best_dense"] == 13
    fastest = min(x["0.3"]["frame_ms"] for x in results["blockcopy"].values())
    assert results["cameras_at_25"]["0.3"] == int(40 / fastest)


def test_shares_are_arguments(capsys):
    parse = streams._parser().parse_args
    assert parse([]).shares == ["0.3", "0.15"]
    opts = ["MODEL.BLOCKCOPY.LEARNER.DELAY", "3"]
    args = parse(["--shares", "0.01", "1", "--dtype", "tf32", "--opts", *opts])
    assert args.shares == ["0.01", "1"] and args.opts == opts
    for wrong in ("0", "1.1", "half", "nan"):
        with pytest.raises(SystemExit):
            parse(["--shares", wrong])
        assert f"expected a share above 0 and up to 1, not '{wrong}'" in capsys.readouterr().err


def test_random_weights_are_those_of_the_dense_rival(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)
    opts = small_model_opts(tmp_path)
    cfg = load_config(config_path(CONFIG), [*opts, "MODEL.WEIGHTS", ""])
    image = torch.randint(0, 256, (3, 128, 256), dtype=torch.uint8)
    models = [streams.build_dense(cfg, image) for _ in range(2)]
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    variances = [value for name, value in one.items() if name.endswith("running_var")]
    thresholds = {model.roi_heads.box_predictor.test_score_thresh for model in models}
    assert len(thresholds) == 1 and 0 < thresholds.pop() < 1
    opts += ["MODEL.WEIGHTS", "", "MODEL.BLOCKCOPY.ENABLED", "True"]
    cfg = load_config(config_path(CONFIG), opts)
    made = streams.Streams(cfg, [image], 1, torch.float32, "cpu").model.state_dict()
    assert all(torch.equal(made[name], value) for name, value in one.items())
    assert variances and all(1 <= value.min() < value.max() <= 2 for value in variances)


@pytest.mark.parametrize("number", [1, 3])
def test_streams_show_one_clip_from_several_frames_on(tmp_path, monkeypatch, number):
    monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)
    cfg = load_config(
        config_path(CONFIG), [*small_model_opts(tmp_path), "MODEL.BLOCKCOPY.ENABLED", "True"]
    )
    images = [torch.full((3, 128, 256), value, dtype=torch.uint8) for value in (1, 2, 3, 4)]
    ticks = streams.Streams(cfg, images, number, torch.float32, "cpu").ticks
    shown = [[int(one["image"][0, 0, 0]) for one in tick] for tick in ticks]
    assert [tick[0] for tick in shown] == [1, 2, 3, 4]
    assert number == 1 or [tick[1] for tick in shown] == [4, 1, 2, 3]
