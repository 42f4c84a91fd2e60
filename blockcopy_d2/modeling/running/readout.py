"""Reading the outputs of frames while the device goes on to what comes after them."""

import torch

from ..fixed_shape import StaticDetections

__all__ = ["Readout"]


class Readout:
    """
    The outputs of the frames of a batch, each to be read at any time. Detections are made Instances
    of when they are; on CUDA that happens on a stream beside the current one: neither the host nor
    the masks wait for what was launched after the detections, such as the learner's step.
    """

    def __init__(self, name, result, side):
        """
        Args:
            name (str): of the result in Detectron2's output.
            result (StaticDetections or Tensor): of all images, just launched on the current stream.
                It is copied.
            side (torch.cuda.Stream or None): None on other devices.
        """
        self._name, self._result = name, result.clone()
        self._side, self._counts = side, None
        self._ready = None if side is None else torch.cuda.current_stream().record_event()

    def output(self, image, timer):
        """
        Wait for detections; other outputs are used on the current stream, which does.

        Args:
            image (int): of the batch.
            timer (StageTimer): counts to the stage "inference".

        Returns:
            dict: in Detectron2's format.
        """
        if isinstance(self._result, StaticDetections):
            return {self._name: self._instances(image, timer)}
        return {self._name: self._result[image]}

    def _instances(self, image, timer):
        if self._side is None:
            with timer.stage("inference"):
                return self._result.instances_of(image, self._count(image))
        current = torch.cuda.current_stream()
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side), timer.stage("inference"):
            instances = self._result.instances_of(image, self._count(image))
        current.wait_stream(self._side)
        for value in instances.get_fields().values():
            # Memory of the other stream, in use on this one.
            getattr(value, "tensor", value).record_stream(current)
        return instances

    def _count(self, image):
        """int: detections of an image. The host waits once for those of all images."""
        if self._counts is None:
            self._counts = self._result.count.tolist()
        return self._counts[image]
