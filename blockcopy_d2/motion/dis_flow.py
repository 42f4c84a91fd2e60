"""Dense optical flow by OpenCV's DIS (dense inverse search), on the CPU."""

import torch
from detectron2.config import configurable
from torch.nn import functional as F

from .build import MOTION_REGISTRY, MotionEstimator
from .field import field_size
from .luma import OUTSIDE
from .matching import keep_still

__all__ = ["DIS_PRESETS", "DISFlow"]

DIS_PRESETS = ("ultrafast", "fast", "medium")
# DIS compares patches of 8 pixels of a level of its own pyramid, and refuses smaller pictures.
_LEAST_SIDE = 64

# The level at which DIS ends. The faster presets end at 2, an eighth of the input. Pictures of
# DAVIS that are moved by that flow are off by 7.0 grey levels; at level 1, by 5.5.
_FINEST_SCALE = 1
# Up to so many pixels the flow goes down to full resolution: that costs little there, and each
# pixel shows a larger part of the scene.
_SMALL = 2**16


@MOTION_REGISTRY.register()
class DISFlow(MotionEstimator):
    """The flow of half-resolution luma, averaged over each cell. Frames on a GPU are copied to the
    CPU and the host waits for them."""

    @configurable
    def __init__(self, *, cell_size=8, preset="ultrafast"):
        """
        Args:
            cell_size (int): see MotionEstimator.
            preset (str): one of ``DIS_PRESETS``, from fast to slow.
        """
        super().__init__(cell_size=cell_size)
        if preset not in DIS_PRESETS:
            raise ValueError(f"preset is {preset!r}: expected one of {', '.join(DIS_PRESETS)}")
        try:
            import cv2
        except ImportError as error:
            raise ImportError(
                f"DISFlow is OpenCV's ({error}): pip install opencv-python-headless, or set "
                'MODEL.BLOCKCOPY.MOTION.NAME to "BlockMatching"'
            ) from error
        self.preset = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}")

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.BLOCKCOPY.MOTION
        return {"cell_size": options.CELL_SIZE, "preset": options.DIS_PRESET}

    def estimate(self, current, previous, *, out=None, workspace=None):
        out = self._output(current, previous, out).zero_()
        now, before = current.levels[0], previous.levels[0]
        cell = self.cell_size // 2
        field = torch.zeros(out.shape)
        for stream, pair in enumerate(zip(now.cpu(), before.cpu())):
            height, width = _image_size(pair[0])
            if min(height, width) > 0:
                flow = self._flow(*(level[:height, :width].contiguous().numpy() for level in pair))
                rows, columns = field_size((height, width), cell)
                field[stream, :, :rows, :columns] = F.avg_pool2d(flow, cell, ceil_mode=True)
        keep_still(field, now.cpu(), before.cpu(), cell)
        # A pixel of the finest level is two of the input.
        return out.copy_(2 * field)

    def _flow(self, now, before):
        """float32 (2, h, w), in pixels of a level."""
        import cv2

        height, width = now.shape
        below, right = max(_LEAST_SIDE - height, 0), max(_LEAST_SIDE - width, 0)
        if below or right:
            now, before = (
                cv2.copyMakeBorder(x, 0, below, 0, right, cv2.BORDER_REPLICATE)
                for x in (now, before)
            )
        # One for each call: DIS keeps buffers, which threads must not share.
        search = cv2.DISOpticalFlow_create(self.preset)
        finest = _FINEST_SCALE if now.size > _SMALL else 0
        search.setFinestScale(min(search.getFinestScale(), finest))
        flow = search.calc(now, before, None)
        return torch.from_numpy(flow[:height, :width]).permute(2, 0, 1)


def _image_size(level):
    """Height and width of the image on the canvas of a level."""
    inside = level != OUTSIDE
    return int(inside.any(1).sum()), int(inside.any(0).sum())
