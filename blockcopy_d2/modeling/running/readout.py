"""Reads the outputs of frames while the device continues with later work."""

import functools

import torch
from detectron2.structures import Instances

from blockcopy_d2.kernels.device import current_stream

__all__ = ["CountForecast", "Readout", "SentCounts", "read_whole"]


class SentCounts:
    """Numbers of detections on their way to the host, which waits where it reads one."""

    def __init__(self, counts):
        """
        Args:
            counts (Tensor): int32 (N,), just launched on the current stream. They are copied.
        """
        self._arrived = None
        if not counts.is_cuda:
            self._counts = counts.clone()
            return
        # Copied between two graphs: on another stream, a copy on the device would come first.
        self._counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        self._counts.copy_(counts, non_blocking=True)
        self._arrived = current_stream(counts.device).record_event()

    def __getitem__(self, image):
        """int: detections of an image."""
        return self._numbers[image]

    @functools.cached_property
    def _numbers(self):
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._counts.tolist()


class CountForecast:
    """
    Expects a number of detections that a frame will hardly exceed, from the latest frames read.
    With it, memory for masks is there before the host knows their number.
    """

    def __init__(self, num_images):
        """
        Args:
            num_images (int): N.
        """
        self._latest = [None] * num_images

    def note(self, image, count):
        """Take note of the detections of an image (int each)."""
        self._latest[image] = count

    def most(self, images):
        """
        Args:
            images (list[int]):

        Returns:
            int or None: detections of each image, with a few to spare; None if nothing was read of
            one of them.
        """
        counts = [self._latest[image] for image in images]
        return None if None in counts else max(count + max(count // 8, 2) for count in counts)


class Readout:
    """
    The outputs of the frames of a batch, readable at any time. Reading detections makes Instances
    of them, and reading their masks pastes those, on CUDA on a stream beside the current one.
    Neither waits for later launches, such as the learner's step.
    """

    def __init__(self, heads, taken, side, counts=None, forecast=None):
        """
        Args:
            heads (StaticHeads): heads of the model.
            taken (TakenResult): their result of all images, just launched on the current stream.
            side (torch.cuda.Stream or None): None on other devices.
            counts (SentCounts or None): numbers of detections, if they are on their way already.
            forecast (CountForecast or None): shared by the frames of a batch.
        """
        self._complete, self._taken = heads.complete, taken
        self._side, self._counts, self._forecast = side, counts, forecast
        # Masks that were pasted before they are read, of as many detections or more.
        self._pasted = {}
        if side is not None:
            self._launched_on = current_stream(side.device)
            self._ready = self._launched_on.record_event()
        if self._counts is None and taken.has_detections:
            self._counts = SentCounts(self._detections.count)

    def output(self, image, timer):
        """
        Wait for detections. Other outputs are used on the current stream, which waits for them.

        Args:
            image (int): index of the image in the batch.
            timer (StageTimer): counts to the stage "inference".

        Returns:
            Mapping: in Detectron2's format.
        """
        output = {
            name: self._instances(image, timer) if part is None else part[image]
            for name, part in self._taken.parts.items()
        }
        return self._complete(output)

    def paste(self, images, timer):
        """
        Paste the masks of several images together, which takes one launch and shares memory. The
        host does not wait for their number if it can be told from earlier frames.

        Args:
            images (list[int]): indices of the images.
            timer (StageTimer): see :meth:`output`.
        """
        if not self._taken.has_detections or self._detections.masks is None:
            return
        most = None if self._forecast is None else self._forecast.most(images)
        if most is not None:
            counts = [min(most, self._detections.masks.shape[1])] * len(images)
        elif len(images) > 1:
            counts = [self._counts[image] for image in images]
        else:
            return
        self._paste(images, counts, timer)

    def _paste(self, images, counts, timer):
        pasted = self._beside(timer, lambda: self._detections.paste(images, counts))
        self._pasted.update(zip(images, pasted, strict=True))

    @functools.cached_property
    def _detections(self):
        return self._taken.detections()

    def _instances(self, image, timer):
        slots, paste = self._taken.slots(), None
        if self._side is not None:
            current = current_stream(self._side.device)
            if current != self._launched_on:
                current.wait_event(self._ready)
                slots[0].record_stream(current)
        if self._detections.masks is not None:
            paste = functools.partial(self._masks, image, timer)
        # All that needs no count comes before waiting for it.
        of_image = [x[image] for x in slots]
        count = self._counts[image]
        if self._forecast is not None:
            self._forecast.note(image, count)
        return self._detections.instances_of(image, count, of_image, paste_later=paste)

    def _masks(self, image, timer):
        count = self._counts[image]
        if image not in self._pasted or len(self._pasted[image]) < count:
            self._paste([image], [count], timer)
        return self._pasted.pop(image)[:count]

    def _beside(self, timer, function):
        """Calls a function on the other stream, for which the current one waits."""
        if self._side is None:
            with timer.stage("inference"):
                return function()
        current = current_stream(self._side.device)
        if current != self._launched_on:
            # The stream that frees their memory will not wait for this one.
            self._detections.count.record_stream(self._side)
        self._side.wait_event(self._ready)
        with torch.cuda.stream(self._side), timer.stage("inference"):
            result = function()
        current.wait_stream(self._side)
        for tensor in result:
            tensor.record_stream(current)
        return result


def read_whole(*outputs):
    """
    Compute the parts of outputs that are left until they are read, such as masks to paste. The
    masks of several results of a batch are pasted together, and share memory.

    Args:
        outputs (Mapping): outputs of frames or images, in Detectron2's format; FrameResults are
            such.
    """
    unread = {}
    for output in outputs:
        readout = getattr(output, "_readout", None)
        if readout is not None and "output" not in vars(output):
            unread.setdefault(readout, []).append(output)
    for readout, results in unread.items():
        readout.paste([result._slot for result in results], results[0].timer)
    for output in outputs:
        for value in output.values():
            if isinstance(value, Instances):
                dict(value.get_fields())
