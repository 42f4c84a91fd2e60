"""The feature caches of one video stream.

Shape shorthand: N streams, C channels, H x W pixels.
"""

import torch


class FeatureMap:
    """One dense map of features, stored as rows of C channels that outlive a frame.

    `rows` is (NHW + 2, C): the pixels, then a row of zeros that reads beyond the border see, then a
    row that takes the writes beyond it (see grid.Level).
    """

    def __init__(self, *, batch, channels, size, dtype, device):
        height, width = size
        self.size = (height, width)
        num_pixels = batch * height * width
        # Written by the first frame, which runs all blocks; until then NaN shows what is missing.
        self.rows = torch.full((num_pixels + 2, channels), torch.nan, dtype=dtype, device=device)
        self.rows[num_pixels] = 0
        self.pixels = self.rows[:num_pixels].view(batch, height, width, channels)

    def as_nchw(self):
        """(N, C, H, W), a view in the channels-last memory format."""
        return self.pixels.permute(0, 3, 1, 2)


class StreamState:
    """What the block-sparse modules of a model remember of one stream (or one batch of streams).

    It belongs to the stream, not to the model: one model serves many streams, each with its own
    state. It is never part of a state_dict.
    """

    def __init__(self):
        self._programs = {}
        self._shared = {}

    def reset(self):
        """Forgets everything; the next frame must run all blocks."""
        self._programs.clear()
        self._shared.clear()

    @property
    def nbytes(self):
        """Bytes held by the caches."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for caches in self._programs.values()
            for tensor in caches.tensors()
        }
        return sum(storages.values())

    def caches(self, program):
        """The Caches of `program`, or None before its first frame."""
        return self._programs.get(program)

    def create_caches(self, program):
        """Empty Caches for `program`."""
        caches = self._programs[program] = Caches()
        return caches

    def share(self, feature_map):
        """Lets other modules of this stream read `feature_map` in place when they are given it."""
        self._shared[feature_map.rows.data_ptr()] = feature_map

    def find(self, tensor):
        """The FeatureMap behind `tensor` if a module of this stream handed it out, else None."""
        feature_map = self._shared.get(tensor.data_ptr())
        if feature_map is not None and feature_map.as_nchw().shape == tensor.shape:
            return feature_map
        return None


class Caches:
    """What one program keeps of one stream, by number of the value.

    Attributes:
        maps: FeatureMap of the persistent values.
        statistics: partial sums per block of normalisations and global means.
        whole: tensors that are not aligned with the blocks.
    """

    def __init__(self):
        self.maps = {}
        self.statistics = {}
        self.whole = {}

    def tensors(self):
        for feature_map in self.maps.values():
            yield feature_map.rows
        for tensors in self.statistics.values():
            yield from tensors
