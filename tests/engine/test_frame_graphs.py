"""Public calls run streams as graphs where they can, with the results of eager frames."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from blockcopy_d2.data import register_cityscapes_video
from blockcopy_d2.engine import evaluate_clips, load_config
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.modeling.running import graph as frame_graph
from blockcopy_d2.resources import config_path
from tests.data.cityscapes_tree import write_clip
from tests.small_model import CONFIG, small_model_opts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DATASET = "tiny_clips_of_graphs"


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if DEVICE == "cpu":
        monkeypatch.setattr(frame_graph, "_has_graphs", lambda model: True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def config(folder, graph, *opts):
    switches = ["MODEL.BLOCKCOPY.ENABLED", True, "MODEL.BLOCKCOPY.CUDA_GRAPH", graph]
    opts = [*small_model_opts(folder), *switches, *opts, "MODEL.DEVICE", DEVICE]
    return load_config(config_path(CONFIG), [str(x) for x in opts])


def build(folder, graph, *opts):
    cfg = config(folder, graph, *opts)
    torch.manual_seed(0)
    return VideoPredictor(cfg)


def frames(number, size=(96, 160), seed=0):
    generator = np.random.default_rng(seed)
    still = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
    for index in range(number):
        image = still.copy()
        image[20:60, 10 + 8 * index : 50 + 8 * index] = 255
        yield image


def assert_same_scores(expected, found, where):
    expected, found = (x["instances"].scores.cpu() for x in (expected, found))
    assert len(found) == len(expected), f"{where}: detections"
    if len(found):
        close = torch.isclose(found, expected, atol=1e-4, rtol=1e-3).all()
        assert close, f"{where}: scores {found.tolist()} instead of {expected.tolist()}"


def assert_same_blocks(expected, found, where):
    """Compares executed blocks, and their reasons: what the policy saw, and its logits."""
    assert found.is_first == expected.is_first, where
    if torch.equal(found.grid.active, expected.grid.active):
        return
    told = [f"{where}: executes {found.grid.active.int().tolist()}"]
    told += [f"instead of {expected.grid.active.int().tolist()}"]
    if found.observation is not None and expected.observation is not None:
        for name in ("frame", "frame_state", "output", "grid"):
            pair = (getattr(x.observation, name) for x in (found, expected))
            told += [f"observation.{name} is off by {_distance(*pair):.3g}"]
        told += [f"logits {found.decision.logits}, instead of {expected.decision.logits}"]
    pytest.fail("\n".join(told))


def _distance(found, expected):
    return (found - expected).abs().max().item()


def test_a_predictor_of_videos(folder):
    eager, graph = (build(folder, on) for on in (False, True))
    assert graph.replays and not eager.replays
    for seed in (0, 1):
        pairs = zip(eager.stream(frames(6, seed=seed)), graph.stream(frames(6, seed=seed)))
        for index, ((_, expected), (_, found)) in enumerate(pairs):
            where = f"frame {index} of video {seed}"
            assert_same_blocks(expected, found, where)
            assert_same_scores(expected, found, where)
        for predictor in (eager, graph):
            predictor.set_target(0.6)
    assert graph.learner.frames == eager.learner.frames == 10
    kept = graph._stream.graph
    graph.reset()
    graph(next(frames(1)))
    assert graph._stream.graph is kept, "the graph serves the next video"


def test_a_predictor_of_several_videos_runs_them_as_a_batch(folder):
    graph = build(folder, True)
    ticks = list(graph.streams([frames(2), frames(2, seed=1)]))
    assert len(ticks) == 2 and all(len(result["instances"]) for _, result in ticks[1])


def test_a_model_given_videos(folder):
    eager, graph = (build(folder, on).model for on in (False, True))
    for index, image in enumerate(frames(4)):
        outputs = []
        for model in (eager, graph):
            image_ = torch.from_numpy(image.transpose(2, 0, 1).copy())
            inputs = {"image": image_, "video_id": "a", "frame_index": index}
            outputs.append(model([inputs, {**inputs, "video_id": "b"}]))
        for video, (expected, found) in zip("ab", zip(*outputs, strict=True)):
            assert type(found) is dict and found["instances"].image_size == (96, 160)
            assert_same_scores(expected, found, f"frame {index} of video {video}")
    assert eager.learner.frames == graph.learner.frames == 6


def test_a_budget_counts_reading_the_output(folder):
    predictor = build(folder, True, "MODEL.BLOCKCOPY.POLICY.NAME", "FrameDifference")
    predictor.set_budget(1000)
    read = ["output" in vars(result) for _, result in predictor.stream(frames(3))]
    assert read == [False, True, True]


def test_an_evaluation(folder, tmp_path):
    for clip in range(3):
        write_clip(tmp_path / "clips", f"aachen_{clip:06d}", num_frames=4)
    register_cityscapes_video(DATASET, str(tmp_path / "clips"), "val")
    summaries = []
    try:
        for graph in (False, True):
            output = tmp_path / f"output_{graph}"
            cfg = config(
                folder, graph, "DATASETS.TEST", f"('{DATASET}',)", "OUTPUT_DIR", output,
                "INPUT.CLIP.NUM_FRAMES", 4, "DATALOADER.NUM_WORKERS", 0,
                "TEST.BLOCKCOPY.COMPARE", "['dense']",
            )  # fmt: skip
            torch.manual_seed(0)
            evaluate_clips(cfg)
            summaries.append(json.loads((output / "blockcopy_summary.json").read_text()))
            metrics = json.loads((output / "metrics.json").read_text().splitlines()[-1])
            stages = {key for key in metrics if key.startswith("ms/")}
            assert stages == {
                f"ms/{name}"
                for name in (
                    "preprocess",
                    "policy",
                    "network",
                    "heads",
                    "observe",
                    "information_gain",
                    "policy_update",
                )
            }
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    eager, graph = summaries
    assert graph["executed_fraction"] == pytest.approx(eager["executed_fraction"])
    assert graph["frames"] == eager["frames"] == 12
    for name in ("blockcopy", "dense"):
        assert graph[name]["AP"] == pytest.approx(eager[name]["AP"], abs=0.1), name
        # The second stage computes every slot.
        assert graph[name]["gmacs"] == pytest.approx(eager[name]["gmacs"], rel=0.1)
    assert graph["policy"]["gain_share"] == pytest.approx(eager["policy"]["gain_share"], abs=0.02)
