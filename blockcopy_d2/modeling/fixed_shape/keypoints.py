"""
Keypoints of detections. Their heatmaps have fixed shapes; their places are found when they are
read, since Detectron2 resizes every heatmap to the size of its box.

Shape shorthand in this module:

    N: images of a batch
    D: slots for detections of an image
    J: keypoints of a detection
    S: side of a heatmap
    n: detections of an image
"""

import functools
from dataclasses import dataclass

from detectron2.structures.keypoints import heatmaps_to_keypoints
from torch import Tensor

__all__ = ["StaticKeypoints"]


@dataclass
class StaticKeypoints:
    """
    Attributes:
        heatmaps (Tensor): float32 (N, D, J, S, S), logits; undefined beyond the count.
        boxes (Tensor): float32 (N, D, 4), the boxes in pixels of the network's input.
        scale (tuple[float, float]): output pixels per pixel of the input, x and y.
    """

    heatmaps: Tensor
    boxes: Tensor
    scale: tuple[float, float]

    def fields_of(self, image, n):
        """
        Args:
            image (int):
            n (int): its count.

        Returns:
            dict[str, callable]: functions that return fields of its Instances, in memory of their
            own: "pred_keypoints", float32 (n, J, 3), x, y and score; "pred_keypoint_heatmaps",
            float32 (n, J, S, S). The former waits for the device, detection by detection.
        """
        heatmaps = self.heatmaps[image, :n]
        return {
            "pred_keypoints": functools.partial(self._find, heatmaps, self.boxes[image, :n]),
            "pred_keypoint_heatmaps": heatmaps.clone,
        }

    def _find(self, heatmaps, boxes):
        keypoints = heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]]
        for axis, scale in enumerate(self.scale):
            keypoints[:, :, axis] *= scale
        return keypoints
