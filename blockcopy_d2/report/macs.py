"""Multiply-accumulates per stage of a model: dense and executed."""

import contextlib

from torch import nn

from blockcopy_d2.modeling import MacCounter
from blockcopy_d2.sparse import BlockSparseModule

__all__ = ["StageMacs"]

# Names of the parts of Detectron2's meta-architectures.
_TITLES = {
    "backbone": "backbone",
    "proposal_generator": "RPN",
    "roi_heads": "RoI heads",
    "head": "head",
    "sem_seg_head": "segmentation head",
}


class StageMacs:
    """
    Splits the multiply-accumulates of a video model by stage: backbone, feature pyramid, RPN,
    heads, policy. Their number comes from :attr:`FrameResult.macs_per_stage`. Those of the
    block-sparse modules are split by the dense count of each layer, scaled by the active pixels at
    the layer's stride; those of the heads by the dense count of each.

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
        self._layers = self._outside = None

    def measure_layers(self, inputs):
        """
        Run the dense model on a frame, to find the size of every layer's output.

        Args:
            inputs (dict): one of Detectron2's input dicts.
        """
        self._layers = {name: [] for name in self.stages}
        with contextlib.ExitStack() as stack:
            # The counters' hooks come first, so that a layer's own count is the gain of its
            # counter.
            counters = stack.enter_context(self.count_dense())
            for name, modules in self.stages.items():
                for module in modules.modules():
                    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                        if module in self._in_blocks:
                            hook = self._noting(self._layers[name], counters[name])
                            handle = module.register_forward_hook(hook)
                            stack.callback(handle.remove)
            self._model([inputs])
        self._outside = {
            name: counter.macs - sum(macs for macs, _ in self._layers[name])
            for name, counter in counters.items()
        }

    def _noting(self, layers, counter):
        def hook(module, inputs, output):
            counted = sum(macs for macs, _ in layers)
            layers.append((counter.macs - counted, tuple(output.shape[-2:])))

        return hook

    @contextlib.contextmanager
    def count_dense(self):
        """
        Yields:
            dict[str, MacCounter]: by stage, counters of the dense model while this is open.
        """
        with contextlib.ExitStack() as stack:
            yield {
                name: stack.enter_context(MacCounter(modules))
                for name, modules in self.stages.items()
            }

    def executed(self, result):
        """
        Args:
            result (FrameResult): result of one frame. Waits for the device.

        Returns:
            dict[str, int]: multiply-accumulates by stage.
        """
        macs = result.macs_per_stage
        in_blocks = {
            name: sum(count * _executed_share(size, result.grid) for count, size in layers)
            for name, layers in self._layers.items()
        }
        parts = _split(macs["network"], in_blocks), _split(macs["heads"], self._outside)
        executed = {name: sum(part[name] for part in parts) for name in self.stages}
        return {**executed, "policy": macs["policy"]}


def _split(total, weights):
    """dict: ``total`` split into whole numbers in proportion to the weights."""
    whole = sum(weights.values())
    return {name: round(total * weight / whole) if whole else 0 for name, weight in weights.items()}


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
    """
    Returns the executed share of a feature map of ``size`` (h, w); 1 if no stride has that size.
    """
    if grid.is_empty:
        return 0.0
    stride = 1
    while stride <= max(grid.image_size):
        level = grid.at_stride(stride)
        if tuple(level.size) == size:
            return level.num_pixels / (size[0] * size[1])
        stride *= 2
    return 1.0
