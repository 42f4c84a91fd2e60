"""Running a model on a video of any length: Detectron2's ``DefaultPredictor`` for streams."""

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from blockcopy_d2.modeling import VideoStream

from .runs import build_video_model

__all__ = ["VideoPredictor"]


class VideoPredictor:
    """
    Runs BlockCopy on one video, frame by frame, and teaches its policy on the way, as evaluation
    does. Frames go through the test-time resizing of the config. Nothing is kept of a frame but
    what the next one needs.

    Attributes:
        model (BlockCopyVideoModel):
        learner (OnlineLearner or None): None where the policy does not learn.
        scale (float): pixels of the network's input per pixel of the last frame.

    Examples:
    ::
        predictor = VideoPredictor(cfg)
        for image, result in predictor.stream(VideoFrames("input.mp4")):
            instances = result.output["instances"]
    """

    @configurable
    def __init__(self, *, model, learner, augmentations, image_format):
        """
        Args:
            model (BlockCopyVideoModel): with its weights loaded.
            learner (OnlineLearner or None): of the model's policy.
            augmentations (list[Augmentation]): deterministic ones, applied to each frame.
            image_format (str): "BGR" or "RGB", what the model takes.

        Raises:
            ValueError: another image format.
        """
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; a video is in 'BGR' or 'RGB'.")
        self.model = model
        self.learner = learner
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.reset()

    @classmethod
    def from_config(cls, cfg):
        """
        Args:
            cfg (CfgNode): with BlockCopy enabled, see
                :func:`blockcopy_d2.engine.defaults.load_config`.
        """
        model, learner = build_video_model(cfg)
        return {
            "model": model,
            "learner": learner,
            "augmentations": detection_utils.build_augmentation(cfg, is_train=False),
            "image_format": cfg.INPUT.FORMAT,
        }

    def reset(self):
        """Start a new video: its first frame executes all blocks. What was learned stays."""
        self._stream = VideoStream()
        self.scale = None

    def __call__(self, image):
        """
        Run the next frame of the video.

        Args:
            image (ndarray): uint8, (H, W, 3), BGR.

        Returns:
            FrameResult: ``output`` is in pixels of ``image``.
        """
        learning = self.learner is not None and self._stream.started
        result = self.model.step(
            self._inputs(image),
            self._stream,
            learning=learning and self.learner.wants_graph(),
        )
        if learning and result.decision.logits is not None:
            self.learner.observe(result.decision, self.model.information_gain(result))
        return result

    def stream(self, frames):
        """
        Run a video from its first frame.

        Args:
            frames (iterable[ndarray]): as of :class:`blockcopy_d2.data.VideoFrames`; read as they
                are needed.

        Yields:
            tuple[ndarray, FrameResult]: a frame and what it gave.
        """
        self.reset()
        for image in frames:
            yield image, self(image)

    def _inputs(self, image):
        height, width = image.shape[:2]
        augmented = T.AugInput(image[:, :, ::-1] if self.image_format == "RGB" else image)
        self.augmentations(augmented)
        self.scale = augmented.image.shape[0] / height
        tensor = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}
