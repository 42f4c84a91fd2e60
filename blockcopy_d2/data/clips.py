"""Builds a loader that yields the frames of a data set of video clips in order."""

import itertools
import logging

from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import Sampler

from .addresses import redact
from .frame_mapper import FrameMapper
from .pictures import read_picture
from .videos import load_videos


class FrameReadError(RuntimeError):
    """
    A frame that cannot be used: missing, broken, or of another size than the frames of its clip.

    Attributes:
        file_name (str): the image or video file.
        video_id (str): the clip.
        frame_index (int): the frame's place in the clip, from 0.
        reason (str): description of the problem.
    """

    def __init__(self, file_name, video_id, frame_index, reason):
        # All fields are positional arguments of the base class, so that the error survives
        # pickling on its way out of a loader's worker.
        super().__init__(file_name, video_id, frame_index, reason)
        self.file_name = file_name
        self.video_id = video_id
        self.frame_index = frame_index
        self.reason = reason

    def __str__(self):
        return (
            f"Frame {self.frame_index} of clip {self.video_id} cannot be used: "
            f"{redact(self.file_name)}: {self.reason}"
        )


class ClipMapper(FrameMapper):
    """
    Maps the dataset dict of a frame to the model's input, as Detectron2's ``DatasetMapper`` does at
    test time, and keeps video_id, frame_index, clip_length and labelled. Frames are read in any
    format of ``detection_utils.read_image``.
    """

    formats = None

    def __call__(self, dataset_dict):
        """
        Args:
            dataset_dict (dict): dict of one frame.

        Returns:
            dict: a copy with "image", a uint8 tensor (C, H, W), and without annotations. For a
            frame that cannot be used it has only video_id, frame_index and "error", a
            :class:`FrameReadError`. (An exception would end the loader's worker, and later clips
            with it.) The evaluation loop logs the error and skips the rest of the clip.
        """
        try:
            image = self._read(dataset_dict)
        except FrameReadError as error:
            return {
                "video_id": dataset_dict["video_id"],
                "frame_index": dataset_dict["frame_index"],
                "error": error,
            }
        mapped = self._augment(image)
        inputs = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        # Detectron2's format lets data sets leave the size out.
        return {**mapped, **inputs, "image": mapped["image"]}

    def _read(self, dataset_dict):
        identity = [dataset_dict[key] for key in ("file_name", "video_id", "frame_index")]
        try:
            image = read_picture(dataset_dict["file_name"], self.image_format)
        except FileNotFoundError as error:
            raise FrameReadError(*identity, "no such file") from error
        except Exception as error:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more for
            # broken files, depending on the wrong byte.
            raise FrameReadError(*identity, f"not a readable image ({error})") from error
        height, width = image.shape[:2]
        expected = dataset_dict.get("height", height), dataset_dict.get("width", width)
        if (height, width) != expected:
            raise FrameReadError(
                *identity,
                f"its size is {width}x{height}, the clip's is {expected[1]}x{expected[0]}",
            )
        return image


class ClipSampler(Sampler):
    """
    Yields the indices of the frames of one rank's clips, in order. A clip is never split between
    ranks, since its frames share one stream of features; every rank gets a contiguous share of
    the clips, equal up to one.
    """

    def __init__(self, clip_lengths, *, rank=None, world_size=None):
        """
        Args:
            clip_lengths (list[int]): frames of each clip of the data set, in order.
            rank, world_size (int): default to those of the running job.
        """
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        starts = [0, *itertools.accumulate(clip_lengths)]
        clips = len(clip_lengths)
        self._indices = range(
            starts[clips * rank // world_size], starts[clips * (rank + 1) // world_size]
        )

    def __iter__(self):
        return iter(self._indices)

    def __len__(self):
        return len(self._indices)


def build_clip_loader(cfg, dataset_name, num_clips=None):
    """
    Builds a loader of the frames of a video data set, for this rank, in order.

    Args:
        cfg (CfgNode): INPUT.CLIP.NUM_FRAMES is the most frames taken of a clip, the last ones
            (they end with the labelled frame); they count from frame_index 0.
        dataset_name (str): a registered data set of videos, see :func:`load_videos`.
        num_clips (int): number of clips to take, from the first. 0: all. Default:
            INPUT.CLIP.NUM_CLIPS.

    Returns:
        DataLoader: yields lists of one dict, see :class:`ClipMapper`. Workers read ahead.

    Raises: as :func:`load_videos`.
    """
    num_clips = cfg.INPUT.CLIP.NUM_CLIPS if num_clips is None else num_clips
    clips = _take_clips(dataset_name, num_clips, cfg.INPUT.CLIP.NUM_FRAMES)
    lengths = [len(clip) for clip in clips]
    logging.getLogger(__name__).info(
        "%s: %d clips with %d frames", dataset_name, len(lengths), sum(lengths)
    )
    return build_detection_test_loader(
        list(itertools.chain.from_iterable(clips)),
        mapper=ClipMapper(cfg),
        sampler=ClipSampler(lengths),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _take_clips(dataset_name, num_clips, num_frames):
    if num_clips < 0 or num_frames < 1:
        raise ValueError(
            f"Cannot take {num_clips} clips of {num_frames} frames from {dataset_name}: "
            f"INPUT.CLIP.NUM_CLIPS must be at least 0, INPUT.CLIP.NUM_FRAMES at least 1."
        )
    clips = load_videos(dataset_name)[: num_clips or None]
    cut = [frame for clip in clips for frame in clip[:-num_frames] if frame["labelled"]]
    if cut:
        logging.getLogger(__name__).warning(
            "%s: clips have up to %d frames, of which the last %d are run (INPUT.CLIP.NUM_FRAMES)."
            " %d labelled frames before them are neither run nor scored.",
            dataset_name,
            max(map(len, clips)),
            num_frames,
            len(cut),
        )
    clips = [clip[-num_frames:] for clip in clips]
    return [
        [
            {**frame, "frame_index": index, "clip_length": len(clip)}
            for index, frame in enumerate(clip)
        ]
        for clip in clips
    ]
