"""Semantic segmentation through train_net.py: training, warming, evaluation, submission."""

import json
import logging
import math
import zipfile

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import train_net
from blockcopy_d2.config import base_config
from blockcopy_d2.data import register_camvid, register_cityscapes_video
from blockcopy_d2.engine import default_argument_parser, load_config
from blockcopy_d2.resources import config_path
from tests.data.cityscapes_tree import write_clip
from tests.data.test_camvid import write_camvid

SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.BLOCKCOPY.BLOCK_SIZE", "32",
    "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY", "2",
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "2",
    "SOLVER.WARMUP_ITERS", "1",
]  # fmt: skip
SWIFTNET = ["MODEL.FPN.OUT_CHANNELS", "16"]
DEEPLAB = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[6]",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def datasets(tmp_path):
    data = tmp_path / "data"
    for clip in range(2):
        write_clip(data, f"ulm_{clip:06d}", num_frames=3)
    write_clip(data, "bonn_000000", split="test", num_frames=3, objects=None)
    for split, suffix in (("val", ""), ("test", "_submission")):
        register_cityscapes_video(
            f"tiny_sem_seg_{split}",
            str(data),
            split,
            evaluator_type=f"cityscapes_video_sem_seg{suffix}",
        )
    write_camvid(tmp_path / "camvid")
    register_camvid("tiny_camvid", str(tmp_path / "camvid"), "val")
    yield
    for name in ("tiny_sem_seg_val", "tiny_sem_seg_test", "tiny_camvid"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def loggers():
    """setup() gives the loggers handlers; other tests read the root logger's."""
    names = ("detectron2", "fvcore", "blockcopy_d2")
    before = {name: (list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = before[name], True


@pytest.fixture
def run(tmp_path):
    def main(config, *opts, data, flags=()):
        arguments = [
            "--config-file", config, *flags,
            *SMALL,
            "DATASETS.TRAIN", f"('{data}',)",
            "DATASETS.TEST", f"('{data}',)",
            "OUTPUT_DIR", str(tmp_path / "output"),
            *opts,
        ]  # fmt: skip
        return train_net.main(default_argument_parser().parse_args(arguments))

    return main


def save_weights(config, opts, path):
    torch.manual_seed(0)
    cfg = base_config(load_config(config_path(config), [*SMALL, *opts, "MODEL.WEIGHTS", ""]))
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return ["MODEL.WEIGHTS", str(path)]


def read_summary(tmp_path):
    return json.loads((tmp_path / "output" / "blockcopy_summary.json").read_text())


@pytest.mark.parametrize(
    "config, opts",
    [
        ("Cityscapes/swiftnet_R_18_blockcopy.yaml", SWIFTNET),
        (
            "Cityscapes/deeplab_v3_plus_R_101_blockcopy.yaml",
            [*DEEPLAB, "MODEL.RESNETS.DEPTH", "50", "INPUT.CROP.SIZE", "(64, 128)"],
        ),
    ],
)
def test_evaluation_on_clips(run, tmp_path, config, opts):
    weights = save_weights(config, opts, tmp_path / "model.pth")
    opts = [*opts, *weights, "INPUT.MIN_SIZE_TEST", "64", "TEST.BLOCKCOPY.OVERLAY_CLIPS", "1"]
    results = run(config, *opts, data="tiny_sem_seg_val", flags=["--eval-only"])
    assert set(results["sem_seg"]) == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}
    summary = read_summary(tmp_path)
    assert summary["frames"] == 6 and summary["clips"] == 2
    assert summary["blockcopy"]["mIoU"] == pytest.approx(results["sem_seg"]["IoU"])
    assert summary["dense"]["mIoU"] is not None and summary["stock"]["seconds_per_frame"] > 0
    assert summary["blockcopy"]["gmacs"] > 0
    assert (tmp_path / "output" / "overlay.mp4").stat().st_size > 0

    opts = [*opts, "MODEL.BLOCKCOPY.POLICY.NAME", "AllBlocks"]
    run(config, *opts, data="tiny_sem_seg_val", flags=["--eval-only"])
    summary = read_summary(tmp_path)
    assert summary["blockcopy"]["mIoU"] == summary["dense"]["mIoU"]
    assert summary["blockcopy"]["gmacs"] == pytest.approx(summary["dense"]["gmacs"])


def test_the_test_split_leaves_a_submission(run, tmp_path):
    config = "Cityscapes/swiftnet_R_18_blockcopy.yaml"
    weights = save_weights(config, SWIFTNET, tmp_path / "model.pth")
    results = run(
        config, *SWIFTNET, *weights, "INPUT.MIN_SIZE_TEST", "64",
        data="tiny_sem_seg_test", flags=["--eval-only"],
    )  # fmt: skip
    assert results == {}
    path = tmp_path / "output" / "inference" / "blockcopy" / "submission_sem_seg.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["bonn_000000_000002_leftImg8bit_pred.png"]
    assert read_summary(tmp_path)["frames"] == 3


@pytest.mark.parametrize(
    "network, opts",
    [
        ("swiftnet_R_18", [*SWIFTNET, "INPUT.CROP.SIZE", "(32, 40)"]),
        pytest.param("deeplab_v3_plus_R_50", DEEPLAB, marks=pytest.mark.slow),
    ],
)
def test_camvid_from_training_to_blockcopy(run, tmp_path, network, opts):
    opts = [*opts, "INPUT.MIN_SIZE_TRAIN", "(36, 48)", "INPUT.MIN_SIZE_TEST", "36"]
    run(f"CamVid/{network}.yaml", *opts, "MODEL.WEIGHTS", "", data="tiny_camvid")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")]
    dense = run(
        f"CamVid/{network}.yaml", *opts, *weights, data="tiny_camvid", flags=["--eval-only"]
    )["sem_seg"]["mIoU"]
    assert math.isfinite(dense)

    config = f"CamVid/{network}_blockcopy.yaml"
    run(config, *opts, *weights, data="tiny_camvid")
    policy = ["MODEL.BLOCKCOPY.POLICY.WEIGHTS", str(tmp_path / "output" / "policy_final.pth")]
    results = run(config, *opts, *weights, *policy, data="tiny_camvid", flags=["--eval-only"])
    summary = read_summary(tmp_path)
    assert summary["frames"] == 6 and summary["clips"] == 2
    assert summary["dense"]["mIoU"] == pytest.approx(dense, abs=0.5)
    assert summary["blockcopy"]["mIoU"] == results["sem_seg"]["mIoU"]
