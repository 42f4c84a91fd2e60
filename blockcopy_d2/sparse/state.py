"""The feature caches of one video stream.

Shape shorthand: N streams, C channels, H x W pixels.
"""

import weakref

import torch

from .tracing import Ref


class FeatureMap:
    """One dense map of features, stored as rows of C channels that outlive a frame.

    `rows` is (NHW + 2, C): the pixels, then a row of zeros for reads beyond the border, then a row
    for writes beyond it (see grid.Level).
    """

    def __init__(self, *, batch, channels, size, dtype, device):
        height, width = size
        self.size = (height, width)
        num_pixels = batch * height * width
        # Written by the first frame, which runs all blocks. Until then NaN exposes missing values.
        self.rows = torch.full((num_pixels + 2, channels), torch.nan, dtype=dtype, device=device)
        self.rows[num_pixels] = 0
        self.pixels = self.rows[:num_pixels].view(batch, height, width, channels)
        # Whether memory between the channels of one pixel and the next pixel reads as zeros.
        self.zero_padded = False
        # Whether the values are lifted for TF32 products, see kernels/tf32.py.
        self.lifted = False

    @classmethod
    def of_rows(cls, rows, *, batch, size):
        """Makes a map in existing memory: (at least NHW, C) rows, possibly part of wider ones."""
        feature_map = cls.__new__(cls)
        feature_map.size = tuple(size)
        feature_map.rows = rows
        num_pixels = batch * size[0] * size[1]
        feature_map.pixels = rows[:num_pixels].view(batch, *size, rows.shape[1])
        feature_map.zero_padded = feature_map.lifted = False
        return feature_map

    def channels(self, start, count):
        """`count` channels from `start` on, as a map in the same memory."""
        rows = self.rows[:, start : start + count]
        return FeatureMap.of_rows(rows, batch=len(self.pixels), size=self.size)

    @property
    def operand(self):
        """(rows, H, W, elements from a pixel to the next), as kernels take a map."""
        return (self.rows, *self.size, self.rows.stride(0))

    @property
    def wide(self):
        """Returns whether 32 bits do not hold the offset of every element."""
        return len(self.rows) * self.rows.stride(0) >= 2**31

    def as_nchw(self):
        """(N, C, H, W), a view in the channels-last memory format."""
        return self.pixels.permute(0, 3, 1, 2)


class MissingFeatures(RuntimeError):
    """A frame does not run all blocks, and there are no features for the others."""


class StreamState:
    """Features of a model's block-sparse modules for one stream, or for one batch of streams.

    The state belongs to the stream: one model serves many streams, each with its own state. It is
    never part of a state_dict.
    """

    def __init__(self):
        self._programs = {}
        self._shared = {}
        self._versions = weakref.WeakKeyDictionary()

    def __reduce__(self):
        # Features belong to a model in this process: a copy's next frame runs all blocks.
        return StreamState, ()

    def reset(self):
        """Forgets everything; the next frame must run all blocks."""
        self._programs.clear()
        self._shared.clear()
        self._versions.clear()

    def expect(self, versions):
        """Forgets everything that was computed with weights other than those of the next frame.

        Args:
            versions: BlockSparseModule -> the version of its weights.
        """
        if any(self._versions.get(module, now) != now for module, now in versions.items()):
            self.reset()
        self._versions.update(versions)

    @property
    def nbytes(self):
        """Bytes held by the caches."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for caches in self._programs.values()
            for tensor in caches.tensors()
        }
        return sum(storages.values())

    def all_caches(self):
        """The Caches of every program that ran for the stream."""
        return list(self._programs.values())

    def programs(self):
        """(Program, Caches) of every program that ran for the stream."""
        return list(self._programs.items())

    def caches(self, program, grid):
        """The Caches of `program`; empty ones before its first frame.

        Args:
            grid: BlockGrid of the frame that is to run.

        Raises:
            MissingFeatures: if there are none yet and the frame does not run all blocks.
        """
        if program not in self._programs:
            if not grid.is_full:
                raise MissingFeatures(
                    "The first frame of a stream must run all blocks: this StreamState holds no "
                    "features of this network at this size and precision. Reset it and pass "
                    "BlockGrid.full()."
                )
            self._programs[program] = Caches()
        return self._programs[program]

    def copy_stream(self, slot, other, other_slot):
        """Copies the features of a stream from another state over those of a stream of this one.

        Args:
            slot, other_slot: places of the streams in the batches.
            other: StreamState of the same modules at the same size and precision; both have had a
                frame.
        """
        for own, others in zip(self.all_caches(), other.all_caches(), strict=True):
            sources = others.of_streams()
            for key, target in own.of_streams().items():
                if key in sources:
                    target[slot].copy_(sources[key][other_slot])
            own.moved |= others.moved

    def outputs(self, program):
        """
        Returns the outputs of `program` after a frame, as a flat list. They are the stream's own
        maps, which its other modules may read in place.
        """
        caches, outputs = self._programs[program], []
        for output in program.outputs:
            if isinstance(output, Ref):
                if program.values[output.index].stride is None:
                    output = caches.whole[output.index]
                else:
                    feature_map = caches.maps[output.index]
                    self.share(feature_map)
                    output = feature_map.as_nchw()
            outputs.append(output)
        return outputs

    def share(self, feature_map):
        """Lets other modules of this stream read `feature_map` in place when they are given it."""
        nchw = feature_map.as_nchw()
        self._shared[nchw.data_ptr(), nchw.shape] = feature_map

    def find(self, tensor):
        """The FeatureMap behind `tensor` if a module of this stream handed it out, else None."""
        return self._shared.get((tensor.data_ptr(), tensor.shape))


class Caches:
    """Maps that one program keeps of one stream, by number of the value.

    Attributes:
        maps: FeatureMap of the persistent values.
        statistics: partial sums per block of normalisations and global means.
        whole: tensors that are not aligned with the blocks.
        bound: the program with these tensors filled in, as a backend keeps it.
        moved: whether maps were moved since operators without a block-sparse rule last read them.
    """

    def __init__(self):
        self.maps = {}
        self.statistics = {}
        self.whole = {}
        self.bound = None
        self.moved = False

    def of_streams(self):
        """Returns the tensors (N, ...) that hold the state of each stream, by their place."""
        found = {("map", index): feature_map.pixels for index, feature_map in self.maps.items()}
        for index, tensors in self.statistics.items():
            found |= {("statistics", index, n): tensor for n, tensor in enumerate(tensors)}
        streams = {len(pixels) for pixels in found.values()}
        for index, value in self.whole.items():
            if isinstance(value, torch.Tensor) and value.dim() and len(value) in streams:
                found["whole", index] = value
        return found

    def tensors(self):
        for feature_map in self.maps.values():
            yield feature_map.rows
        for tensors in self.statistics.values():
            yield from tensors
