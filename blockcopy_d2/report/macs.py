"""Multiply-accumulates per stage of a model: all of them, and those that were executed."""

import contextlib

from torch import nn

from blockcopy_d2.evaluation.efficiency import MacCounter
from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["StageMacs"]

# What the parts of Detectron2's meta-architectures are called.
_TITLES = {
    "backbone": "backbone",
    "proposal_generator": "RPN",
    "roi_heads": "RoI heads",
    "head": "head",
    "sem_seg_head": "segmentation head",
}
# What the stages of FrameResult.other_macs are called here.
_STAGES = {"heads": _TITLES["roi_heads"]}


class StageMacs:
    """
    Splits the multiply-accumulates of a video model by stage: backbone, feature pyramid, RPN,
    heads, policy. Layers that run as modules are counted while they run. Those of a block-sparse
    module do not; of them the dense count of each layer is scaled by the pixels that a grid has at
    the layer's stride, which is what :attr:`FrameResult.macs` sums up.

    Attributes:
        stages (dict[str, ModuleList]): by name, in order of execution.
    """

    def __init__(self, model):
        """
        Args:
            model (BlockCopyVideoModel):
        """
        self.stages = _stages(model)
        self._model = model
        self._in_blocks = {
            layer
            for module in model.base.modules()
            if isinstance(module, BlockSparseModule)
            for layer in module.modules()
        }
        self._layers = None

    def measure_layers(self, inputs):
        """
        Run the dense model on a frame, to learn the size of every layer's output.

        Args:
            inputs (dict): one of Detectron2's input dicts.
        """
        self._layers = {name: [] for name in self.stages}
        with contextlib.ExitStack() as stack:
            for name, modules in self.stages.items():
                # The counter's hooks come first: a layer's own count is what the counter gained.
                counter = stack.enter_context(MacCounter(modules))
                for module in modules.modules():
                    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                        if module in self._in_blocks:
                            hook = self._noting(self._layers[name], counter)
                            handle = module.register_forward_hook(hook)
                            stack.callback(handle.remove)
            self._model([inputs])

    def _noting(self, layers, counter):
        def hook(module, inputs, output):
            counted = sum(macs for macs, _ in layers)
            layers.append((counter.macs - counted, tuple(output.shape[-2:])))

        return hook

    @contextlib.contextmanager
    def count(self, *, unless=False):
        """
        Args:
            unless (bool): no module runs, and none must be watched.

        Yields:
            dict[str, MacCounter]: what runs as modules while this is open, by stage.
        """
        counters = {name: MacCounter(modules) for name, modules in self.stages.items()}
        with contextlib.ExitStack() as stack:
            if not unless:
                for counter in counters.values():
                    stack.enter_context(counter)
            yield counters

    def executed(self, counters, grid, others=None):
        """
        Args:
            counters (dict[str, MacCounter]): of :meth:`count`, around one accelerated frame.
            grid (BlockGrid): what the frame executed. Waits for the device.
            others (dict[str, int] or None): :attr:`FrameResult.other_macs`.

        Returns:
            dict[str, int]: multiply-accumulates by stage.
        """
        others = {_STAGES.get(name, name): x for name, x in (others or {}).items()}
        return {
            # A network that could not be traced ran as modules after all.
            name: counter.macs or others.get(name) or self._macs_of_blocks(self._layers[name], grid)
            for name, counter in counters.items()
        }

    @staticmethod
    def _macs_of_blocks(layers, grid):
        if grid.is_empty:
            return 0
        return int(sum(macs * _executed_share(size, grid) for macs, size in layers))


def _stages(model):
    stages = {}
    for name, child in model.base.named_children():
        title = _TITLES.get(name, name.replace("_", " "))
        if name == "backbone" and hasattr(child, "bottom_up"):
            stages[title] = [child.bottom_up]
            pyramid = [module for key, module in child.named_children() if key != "bottom_up"]
            stages["FPN"] = pyramid
        else:
            stages[title] = [child]
    stages["policy"] = [model.policy]
    return {name: nn.ModuleList(modules) for name, modules in stages.items()}


def _executed_share(size, grid):
    """Of the pixels of a feature map of ``size`` (h, w); 1 if no stride gives that size."""
    stride = 1
    while stride <= max(grid.image_size):
        level = grid.at_stride(stride)
        if tuple(level.size) == size:
            return level.num_pixels / (size[0] * size[1])
        stride *= 2
    return 1.0
