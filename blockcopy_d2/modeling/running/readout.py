"""Reads the outputs of frames while the device continues with later work."""

import functools

import torch
from detectron2.structures import Instances

from ..fixed_shape import StaticDetections

__all__ = ["Readout", "read_whole"]


class Readout:
    """
    The outputs of the frames of a batch, readable at any time. Reading detections makes Instances
    of them, and reading their masks pastes those. On CUDA both happen on a stream beside the
    current one, so neither the host nor the masks wait for later launches, such as the learner's
    step.
    """

    def __init__(self, name, result, side):
        """
        Args:
            name (str): name of the result in Detectron2's output.
            result (StaticDetections or Tensor): result of all images, just launched on the current
                stream. It is copied.
            side (torch.cuda.Stream or None): None on other devices.
        """
        self._name, self._result = name, result.clone()
        self._side, self._ready, self._counted = side, None, None
        self._counts = self._result.count if isinstance(result, StaticDetections) else None
        if side is not None:
            self._ready = torch.cuda.current_stream().record_event()
            if self._counts is not None:
                self._send_counts()

    def output(self, image, timer):
        """
        Wait for detections. Other outputs are used on the current stream, which waits for them.

        Args:
            image (int): index of the image in the batch.
            timer (StageTimer): counts to the stage "inference".

        Returns:
            dict: in Detectron2's format.
        """
        if isinstance(self._result, StaticDetections):
            return {self._name: self._instances(image, timer)}
        return {self._name: self._result[image]}

    def _instances(self, image, timer):
        run = functools.partial(self._beside, timer)
        return run(lambda: self._result.instances_of(image, self._count(image), run_later=run))

    def _beside(self, timer, function):
        """Calls a function on the other stream, for which the current one waits."""
        if self._side is None:
            with timer.stage("inference"):
                return function()
        current = torch.cuda.current_stream()
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side), timer.stage("inference"):
            result = function()
        current.wait_stream(self._side)
        for tensor in _tensors(result):
            # Memory of the other stream, in use on this one.
            tensor.record_stream(current)
        return result

    def _send_counts(self):
        """Sends counts to the host as soon as they are known."""
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side):
            counts = self._result.count
            self._counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
            self._counts.copy_(counts, non_blocking=True)
            self._counted = self._side.record_event()

    def _count(self, image):
        """int: detections of an image. The host waits for it."""
        if self._counted is not None:
            self._counted.synchronize()
        return int(self._counts[image])


def read_whole(output):
    """
    Compute the parts of an output that are left until they are read, such as masks to paste.

    Args:
        output (Mapping): output of a frame or an image, in Detectron2's format; a FrameResult is
            one.
    """
    for value in output.values():
        if isinstance(value, Instances):
            dict(value.get_fields())


def _tensors(result):
    """Tensors of a mask, or of Instances without fields that are computed later."""
    if not isinstance(result, Instances):
        return [result]
    names = ("pred_boxes", "scores", "pred_classes")
    return [getattr(x, "tensor", x) for x in map(result.get, names)]
