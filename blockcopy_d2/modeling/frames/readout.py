"""Reading the detections of a frame while the device goes on to what comes after them."""

import dataclasses

import torch

__all__ = ["Readout"]


class Readout:
    """
    Detections, to be made Instances of at any time. On CUDA that happens on a stream beside the
    current one: neither the host nor the masks wait for what was launched after the detections,
    such as the learner's step.
    """

    def __init__(self, detections, side):
        """
        Args:
            detections (StaticDetections): of one image, just launched on the current stream. They
                are copied, but for the policy masks.
            side (torch.cuda.Stream or None): None on other devices.
        """
        names = ("count", "boxes", "scores", "classes", "masks")
        tensors = {name: getattr(detections, name) for name in names}
        copies = {name: x.clone() for name, x in tensors.items() if x is not None}
        self._detections = dataclasses.replace(detections, **copies)
        self._side = side
        self._ready = None if side is None else torch.cuda.current_stream().record_event()

    def instances(self, timer):
        """
        Wait for the detections.

        Args:
            timer (StageTimer): counts to the stage "inference".

        Returns:
            Instances: Detectron2's, for use on the current stream.
        """
        if self._side is None:
            with timer.stage("inference"):
                return self._detections.to_instances()[0]
        current = torch.cuda.current_stream()
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side), timer.stage("inference"):
            (instances,) = self._detections.to_instances()
        current.wait_stream(self._side)
        for value in instances.get_fields().values():
            # Memory of the other stream, in use on this one.
            getattr(value, "tensor", value).record_stream(current)
        return instances
