"""Hooks that show what a run did: a video and a summary."""

import logging
import os

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.utils import comm
from PIL import Image

from blockcopy_d2.evaluation.summary import summarize, summary_table, write_summary
from blockcopy_d2.visualization import VideoWriter, draw_frame, pixel_classes

__all__ = ["OverlayHook", "SummaryHook"]


class OverlayHook(HookBase):
    """
    Draws the first clips to a video: detections or classes of pixels, executed blocks, frame
    number, executed fraction and time. Comes after the hooks that run models; drawing is no part
    of any frame's time.
    """

    def __init__(self, path, *, num_clips, fps, metadata, image_format, score_threshold):
        """
        Args:
            path (str): of the video.
            num_clips (int): clips to draw.
            fps (float):
            metadata (Metadata): of the data set; names the classes.
            image_format (str): of the loader's images, "BGR" or "RGB".
            score_threshold (float): detections below are not drawn.
        """
        self._path = path
        self._num_clips = num_clips
        self._fps = fps
        self._metadata = metadata
        self._image_format = image_format
        self._score_threshold = score_threshold
        self._clips = 0
        self._writer = None

    def before_train(self):
        self._writer = VideoWriter(self._path, self._fps)

    def after_step(self):
        run = self.trainer.runs.get("blockcopy")
        if run is None:
            return
        self._clips += run.result.is_first
        if self._clips <= self._num_clips:
            self._writer.write(self._draw(run))

    def after_train(self):
        self._writer.close()

    def _draw(self, run):
        inputs, grid = self.trainer.inputs, run.result.grid
        instances = run.output.get("instances")
        if instances is not None:
            instances = instances[instances.scores > self._score_threshold]
        size = (inputs["width"], inputs["height"])
        image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), self._image_format)
        scale = image.shape[0] / inputs["height"]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return draw_frame(
            image[:, :, ::-1],
            instances,
            grid.active[0].cpu(),
            self._metadata,
            classes=pixel_classes(run.output),
            block_size=grid.block_size,
            scale=scale,
            caption=(
                f"clip {self._clips}, frame {inputs['frame_index']}",
                f"{grid.fraction:.0%} executed",
                *(
                    f"{name} {1000 * sum(other.seconds().values()):.0f} ms"
                    for name, other in self.trainer.runs.items()
                ),
            ),
        )


class SummaryHook(HookBase):
    """Gathers what all ranks measured, logs it as a table and writes blockcopy_summary.json."""

    def __init__(self, record, *, scoring, target, output_dir):
        """
        Args:
            record (RunRecord): filled by the other hooks.
            scoring (ScoringHook): registered before this hook.
            target (float): tau.
            output_dir (str):
        """
        self._record = record
        self._scoring = scoring
        self._target = target
        self._output_dir = output_dir

    def after_train(self):
        if not self.trainer.finished:
            return
        record, *others = comm.gather(self._record) or [None]
        if not comm.is_main_process():
            return
        for other in others:
            record.merge(other)
        logger = logging.getLogger(__name__)
        if not record.meters:
            logger.error("No frame could be run:\n%s", "\n".join(record.failures))
            return
        summary = summarize(record, scores=self._scoring.scores, target=self._target)
        logger.info("Summary of the run:\n%s", summary_table(summary, record))
        write_summary(summary, os.path.join(self._output_dir, "blockcopy_summary.json"))
