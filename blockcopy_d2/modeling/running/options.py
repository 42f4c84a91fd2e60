"""Options of a video model."""

from dataclasses import dataclass, field, fields

from blockcopy_d2.config import KEYS

__all__ = ["VideoOptions"]


def _option(key, default):
    return field(default=default, metadata={"key": key})


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """
    Settings of a video model, apart from its parts. An option is one line here and one in
    ``blockcopy_d2/config.py``, which defines its values. Options are compared as a whole: if they
    differ, CUDA graphs are captured anew.

    Attributes:
        block_size (int): B, side of a block in pixels of the network's input.
        scene_cut (float): share of a frame that differs from the last one's at a cut, see
            :func:`scene_cuts`; such frames execute all blocks. 0: there are no cuts.
        refresh_every (int): frames in which every block is executed at least once, see
            :func:`due_for_refresh`. 0: no limit.
        dense_above (float): share of the blocks above which a frame executes all of them.
        amp (bool): run the task network in half precision, see :func:`inference_autocast`. Its
            weights stay as they are.
        cuda_graph (bool): run streams as CUDA graphs where possible, see :class:`FrameGraph`.
        moved_maps (str): one of ``MOVED_MAPS``, the feature maps that move with the picture if the
            model estimates motion; "auto" for those of the task.
        min_moved_stride (int): feature maps of smaller strides stay in place, but those that leave
            the block-sparse modules.
        max_moved_stride (int): feature maps of larger strides stay in place.
        policy_resize (str): how frames come to the policy's resolution, see
            :func:`resize_to_policy`: "mean" or "nearest".
    """

    block_size: int = _option("MODEL.BLOCKCOPY.BLOCK_SIZE", 128)
    scene_cut: float = _option("MODEL.BLOCKCOPY.SCENE_CUT", 0.0)
    refresh_every: int = _option("MODEL.BLOCKCOPY.REFRESH_EVERY", 0)
    dense_above: float = _option("MODEL.BLOCKCOPY.DENSE_ABOVE", 1.0)
    amp: bool = _option("TEST.AMP.ENABLED", False)
    cuda_graph: bool = _option("MODEL.BLOCKCOPY.CUDA_GRAPH", True)
    moved_maps: str = _option("MODEL.BLOCKCOPY.MOTION.MAPS", "auto")
    min_moved_stride: int = _option("MODEL.BLOCKCOPY.MOTION.MIN_STRIDE", 2)
    max_moved_stride: int = _option("MODEL.BLOCKCOPY.MOTION.MAX_STRIDE", 64)
    policy_resize: str = _option("MODEL.BLOCKCOPY.POLICY.RESIZE", "mean")

    def __post_init__(self):
        for name, key in self.keys().items():
            try:
                value = KEYS[key].check(name, getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{error} In a config it is {key}.") from None
            object.__setattr__(self, name, value)

    @classmethod
    def keys(cls):
        """
        Returns:
            dict[str, str]: the config key of every option.
        """
        return {option.name: option.metadata["key"] for option in fields(cls)}

    @classmethod
    def from_config(cls, cfg):
        """
        Args:
            cfg (CfgNode): with the keys of BlockCopy.

        Returns:
            VideoOptions: the options in it.
        """
        return cls(**{name: _value_of(cfg, key) for name, key in cls.keys().items()})


def _value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
