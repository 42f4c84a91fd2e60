"""Reading the output of a frame while the device goes on to what comes after it."""

import torch

from ..fixed_shape import StaticDetections

__all__ = ["Readout"]


class Readout:
    """
    The output of a frame, to be read at any time. Detections are made Instances of when they are;
    on CUDA that happens on a stream beside the current one: neither the host nor the masks wait for
    what was launched after the detections, such as the learner's step.
    """

    def __init__(self, name, result, side):
        """
        Args:
            name (str): of the result in Detectron2's output.
            result (StaticDetections or Tensor): of one image, just launched on the current stream.
                It is copied.
            side (torch.cuda.Stream or None): None on other devices.
        """
        self._name, self._result = name, result.clone()
        self._side = side
        self._ready = None if side is None else torch.cuda.current_stream().record_event()

    def output(self, timer):
        """
        Wait for detections; other outputs are used on the current stream, which does.

        Args:
            timer (StageTimer): counts to the stage "inference".

        Returns:
            dict: in Detectron2's format.
        """
        if isinstance(self._result, StaticDetections):
            return {self._name: self._instances(timer)}
        return {self._name: self._result}

    def _instances(self, timer):
        if self._side is None:
            with timer.stage("inference"):
                return self._result.to_instances()[0]
        current = torch.cuda.current_stream()
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side), timer.stage("inference"):
            (instances,) = self._result.to_instances()
        current.wait_stream(self._side)
        for value in instances.get_fields().values():
            # Memory of the other stream, in use on this one.
            getattr(value, "tensor", value).record_stream(current)
        return instances
