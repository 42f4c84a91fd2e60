"""Hooks that show a run: pictures, a video and a summary."""

import logging
import os
import sys

import numpy as np
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.utils import comm
from PIL import Image, ImageOps

from blockcopy_d2 import visualization
from blockcopy_d2.evaluation.gathering import STOPPED_LIMIT, arrivals
from blockcopy_d2.evaluation.summary import RunRecord, summarize, summary_table, write_summary
from blockcopy_d2.visualization import draw_frame, found_instances, pixel_classes

__all__ = ["FrameDrawer", "GridImageHook", "OverlayHook", "SummaryHook"]


class FrameDrawer:
    """
    Draws a frame of a loop: detections or classes of pixels, executed blocks, a caption, and
    optionally the motion since the last frame.
    """

    @configurable
    def __init__(self, *, metadata, image_format, score_threshold, cell_size=None):
        """
        Args:
            metadata (Metadata): metadata of the data set; names the classes.
            image_format (str): format of the loader's images, "BGR" or "RGB".
            score_threshold (float): detections below are not drawn.
            cell_size (int or None): cell size of the motion; None: it is not drawn.
        """
        self._metadata = metadata
        self._image_format = image_format
        self._score_threshold = score_threshold
        self._cell_size = cell_size

    @classmethod
    def from_config(cls, cfg, dataset_name):
        motion = cfg.TEST.BLOCKCOPY.OVERLAY_MOTION
        return {
            "cell_size": cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE if motion else None,
            "metadata": MetadataCatalog.get(dataset_name),
            "image_format": cfg.INPUT.FORMAT,
            "score_threshold": cfg.TEST.BLOCKCOPY.OVERLAY_THRESHOLD,
        }

    def draw(self, inputs, runs, title):
        """
        Args:
            inputs (dict): inputs of the frame.
            runs (dict[str, ModelRun]): results of the models; that of BlockCopy is drawn.
            title (str): start of the caption; executed fraction and times follow.

        Returns:
            ndarray: uint8, (H, W, 3), BGR, in the size of the frame's file, with a strip below.
        """
        run = runs["blockcopy"]
        grid, instances = run.result.grid, found_instances(run.output)
        if instances is not None:
            instances = instances[instances.scores > self._score_threshold]
        size = (inputs["width"], inputs["height"])
        image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), self._image_format)
        scale = image.shape[0] / inputs["height"]
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        motion = {}
        if self._cell_size is not None and run.result.field is not None:
            motion = {"field": run.result.field[0].cpu(), "cell_size": self._cell_size}
        return draw_frame(
            image[:, :, ::-1],
            instances,
            grid.active[0].cpu(),
            self._metadata,
            classes=pixel_classes(run.output),
            block_size=grid.block_size,
            scale=scale,
            **motion,
            caption=(
                title,
                f"{grid.fraction:.0%} executed",
                *(
                    f"{name} {1000 * sum(other.seconds().values()):.0f} ms"
                    for name, other in runs.items()
                ),
            ),
        )


class OverlayHook(HookBase):
    """
    Draws the first clips to a video, at the size of the very first. Register it after the hooks
    that run models. Drawing does not count to the time of a frame. A run that fails leaves the
    video of the run before; one that is interrupted leaves its own.
    """

    def __init__(self, path, drawer, *, num_clips, fps):
        """
        Args:
            path (str): path of the video.
            drawer (FrameDrawer):
            num_clips (int): clips to draw.
            fps (float):
        """
        self._path = path
        self._drawer = drawer
        self._num_clips = num_clips
        self._fps = fps
        self._clips = 0
        self._writer = self._size = None

    def before_train(self):
        self._writer = visualization.VideoWriter(self._path, self._fps)

    def after_step(self):
        runs, inputs = self.trainer.runs, self.trainer.inputs
        if "blockcopy" not in runs:
            return
        self._clips += runs["blockcopy"].result.is_first
        if self._clips <= self._num_clips:
            title = f"clip {self._clips}, frame {inputs['frame_index']}"
            picture = Image.fromarray(self._drawer.draw(inputs, runs, title))
            self._size = self._size or picture.size
            if picture.size != self._size:
                picture = ImageOps.pad(picture, self._size)
            self._writer.write(np.asarray(picture))

    def after_train(self):
        # Also called while an exception is raised, possibly by a hook before this one.
        if self._writer is not None:
            self._writer.__exit__(*sys.exc_info())


class GridImageHook(HookBase):
    """
    Puts a picture of the executed blocks into the EventStorage, for TensorBoard, which empties it.
    Register it after the hooks that run models and before the writer. Drawing does not count to the
    time of a frame. A first frame, which executes all blocks, shows nothing, so the next one is
    drawn instead.
    """

    def __init__(self, drawer, *, period, max_width=1024):
        """
        Args:
            drawer (FrameDrawer):
            period (int): one picture in so many frames.
            max_width (int): largest width of the pictures in pixels.
        """
        self._drawer = drawer
        self._period = period
        self._max_width = max_width
        self._waiting = 0

    def after_step(self):
        runs, inputs = self.trainer.runs, self.trainer.inputs
        self._waiting += 1
        if self._waiting < self._period or "blockcopy" not in runs:
            return
        if runs["blockcopy"].result.is_first:
            return
        self._waiting = 0
        title = f"{inputs['video_id']}, frame {inputs['frame_index']}"
        picture = Image.fromarray(self._drawer.draw(inputs, runs, title)[:, :, ::-1])
        picture.thumbnail((self._max_width, self._max_width))
        self.trainer.storage.put_image("executed_blocks", np.asarray(picture).transpose(2, 0, 1))


class SummaryHook(HookBase):
    """
    Writes the measurements of all processes as blockcopy_summary.json, computes the scores, and
    writes the file again with them. It also logs them as a table. Even if the run ends early, the
    file has all measurements and says what is missing. Register it last.
    """

    def __init__(self, record, *, scoring, target, output_dir):
        """
        Args:
            record (RunRecord): filled by the other hooks.
            scoring (ScoringHook):
            target (float): tau.
            output_dir (str):
        """
        self._record = record
        self._scoring = scoring
        self._target = target
        self._path = os.path.join(output_dir, "blockcopy_summary.json")

    def after_train(self):
        limit = None if self.trainer.finished else STOPPED_LIMIT
        records = {}
        for rank, record in arrivals(self._record, limit=limit):
            records[rank] = record
            self._write(records, dict.fromkeys(self._scoring.models, "the job ended before"))
        if self.trainer.hurried:
            return
        self._scoring.score()
        if not comm.is_main_process():
            return
        record = _merge(records)
        if not record.meters:
            logging.getLogger(__name__).error(
                "No frame could be run:\n%s", "\n".join(record.failures + record.interruptions)
            )
            return
        summary = self._write(records, self._scoring.failures)
        logging.getLogger(__name__).info("Summary of the run:\n%s", summary_table(summary, record))

    def _write(self, records, unscored):
        record = _merge(records)
        if not record.meters:
            return None
        summary = summarize(
            record, scores=self._scoring.scores, target=self._target, unscored=unscored
        )
        write_summary(summary, self._path)
        return summary


def _merge(records):
    """RunRecord: of all processes, with a line for each that is missing."""
    merged, size = RunRecord(), comm.get_world_size()
    for rank in range(size):
        if rank in records:
            merged.merge(records[rank])
        else:
            merged.interruptions.append(f"process {rank} of {size} has not answered")
    return merged
