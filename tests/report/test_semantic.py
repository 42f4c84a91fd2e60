"""A model that finds no instances but gives every pixel a class."""

import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.data import VideoFrames
from blockcopy_d2.engine import VideoPredictor, load_config
from blockcopy_d2.report import record_video, render_page
from blockcopy_d2.report.clip import ComparisonClip
from blockcopy_d2.resources import config_path

OPTS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.BLOCKCOPY.BLOCK_SIZE", "32",
    "MODEL.BLOCKCOPY.POLICY.WEIGHTS", "",
    "INPUT.MIN_SIZE_TEST", "64",
]  # fmt: skip


def test_segmentation_is_compared_by_pixels(report_folder, tmp_path):
    config, weights = config_path("CamVid/swiftnet_R_18_blockcopy.yaml"), tmp_path / "model.pth"
    torch.save(build_model(base_config(load_config(config, OPTS))).state_dict(), weights)
    cfg = load_config(config, [*OPTS, "MODEL.WEIGHTS", str(weights)])
    video = VideoFrames(report_folder / "clip.mp4")
    with ComparisonClip(tmp_path / "clip.mp4", video.fps) as clip:
        predictor = VideoPredictor(cfg)
        recording = record_video(predictor, video, max_frames=4, targets=(1.0,), draw=clip.add)
    assert recording.metrics == ("mIoU", "pixel accuracy") and clip.frames == 4
    assert recording.runs[-1].target == 1.0
    assert 0 < recording.main.scores["pixel accuracy"] <= 100
    assert recording.dense_macs["segmentation head"][0] > 0
    html = render_page(recording, title="pixels", environment={})
    assert "mIoU" in html and "No clip was drawn" in html
