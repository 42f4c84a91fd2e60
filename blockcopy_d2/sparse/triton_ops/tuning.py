"""Finds the configuration of a launch: from measured tables, else by rule.

Nothing is measured while a network runs. tables/*.json hold the findings of the tuning command on a
GPU. Layers that were not measured there use those of another GPU with the same compute capability.
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib

import torch
import triton

from .bottleneck import BottleneckConfig
from .box_conv import BoxConfig
from .conv_shape import ConvolutionConfig

_TABLES = pathlib.Path(__file__).parent / "tables"
_KERNELS = {"gather": ConvolutionConfig, "box": BoxConfig, "bottleneck": BottleneckConfig}
# Share of active pixels that configurations are chosen for when nothing better is known.
TYPICAL_SHARE = 0.3


# Pixels of a block from which its boxes are worth a bulk copy.
PIXELS_OF_A_BOX = 64


def convolution_config(
    shape, num_pixels, dtype, device, share=TYPICAL_SHARE, *, boxes=False, tile=1
):
    """The BoxConfig or ConvolutionConfig of a launch.

    Args:
        shape: ConvolutionShape.
        num_pixels: output pixels of all levels, active or not.
        dtype: type of the feature maps.
        device: Device.
        share: share of the pixels expected to be active.
        boxes: whether box_conv.py can run it.
        tile: side of the blocks of the largest map.
    """
    config = _measured(layer_key, shape, num_pixels * share, dtype, device, boxes)
    if config is not None:
        return config
    if boxes and tile**2 >= PIXELS_OF_A_BOX and shape.out_channels >= 32:
        return default_box_config(shape, num_pixels * share, dtype, device)
    return default_convolution_config(shape, num_pixels * share, dtype, device)


def _measured(key, shape, num_active, dtype, device, boxes=False):
    """Returns the configuration in the table of the GPU for about so many pixels, or None.

    A configuration for half precision also serves float32, which moves twice the bytes and
    multiplies at half the rate, with as many bytes of the reduction at a time. One for float16 also
    serves bfloat16.
    """
    entries, bucket = _table(device.name, device.capability), pixel_bucket(num_active)
    for measured in (dtype, torch.float16):
        for distance in (0, 1, -1, 2, -2):
            entry = entries.get(key(shape, measured, bucket + distance))
            if entry is None or (entry["kernel"] == "box" and not boxes):
                continue
            config = from_entry(entry)
            if measured.itemsize == dtype.itemsize:
                return config
            if entry["kernel"] != "bottleneck" and config.bk >= 32:
                return dataclasses.replace(config, bk=config.bk // 2)
    return None


def to_entry(config):
    """Returns a configuration in the form of the tables; from_entry() inverts it."""
    kernel = next(name for name, kind in _KERNELS.items() if isinstance(config, kind))
    return {"kernel": kernel, **dataclasses.asdict(config)}


def from_entry(entry):
    """Inverts to_entry()."""
    fields = dict(entry)
    return _KERNELS[fields.pop("kernel")](**fields)


def bottleneck_config(shape, num_pixels, dtype, device, share=TYPICAL_SHARE):
    """Returns the BottleneckConfig of a launch. For the arguments see convolution_config()."""
    config = _measured(bottleneck_key, shape, num_pixels * share, dtype, device)
    if config is not None:
        return config
    wide = shape.middle > 64 or shape.next_channels > 64
    bk = math.gcd(shape.in_channels, 64 if dtype.itemsize == 2 else 32)
    if dtype.itemsize == 2:
        return BottleneckConfig(64, 64, bk, num_warps=4)
    return BottleneckConfig(64, 32, bk, num_warps=8 if wide else 4, num_stages=2 if wide else 3)


def bottleneck_key(shape, dtype, bucket):
    """Key of a bottleneck in the tables, for 2 ** bucket active output pixels."""
    channels = "-".join(
        str(count)
        for count in (shape.in_channels, shape.middle, shape.out_channels, shape.next_channels)
    )
    kernel = "x".join(map(str, shape.kernel))
    dtype = str(dtype).removeprefix("torch.")
    return f"bottleneck {dtype} {channels} {kernel} s{shape.stride} 2^{bucket}"


def layer_key(shape, dtype, bucket):
    """Key of a layer in the tables, for 2 ** bucket active output pixels."""
    kernel = "x".join(map(str, shape.kernel))
    groups = f" g{shape.groups}" if shape.groups > 1 else ""
    pair = f"+{shape.out_channels - shape.first_out}" if shape.first_out else ""
    return (
        f"conv {str(dtype).removeprefix('torch.')} {shape.in_channels}-"
        f"{shape.first_out or shape.out_channels}{pair}"
        f" {kernel} s{shape.stride}{groups} 2^{bucket}"
    )


def pixel_bucket(num_pixels):
    """Rounded binary logarithm."""
    return max(round(num_pixels), 1).bit_length() - 1


@functools.cache
def _table(name, capability):
    """Returns the entries of a GPU: its own, and those of a related GPU where it has none."""
    tables = [json.loads(path.read_text()) for path in sorted(_TABLES.glob("*.json"))]
    own = [table for table in tables if table["gpu"] == name]
    related = [table for table in tables if table.get("compute_capability") == list(capability)]
    entries = [table["entries"] for table in (*own, *related)]
    return dict(collections.ChainMap(*entries))


def table_path(name):
    """File of the measured configurations of a GPU."""
    return _TABLES / (name.replace(" ", "_").replace("/", "_") + ".json")


def default_convolution_config(shape, num_active, dtype, device):
    """
    Returns the largest tiles that still fill the GPU; splits reductions where even small ones do
    not.
    """
    _, unit_in, unit_out = shape.units
    half = dtype.itemsize == 2
    length = shape.kernel[1] * shape.row_pack if shape.row_pack else unit_in
    bk = min(64 if half else 32, max(triton.next_power_of_2(length), 16))
    # A residual takes registers that tiles of 256 channels need.
    widest = min(max(triton.next_power_of_2(unit_out), 16), 128 if shape.residual_scale else 256)
    n_tiles = shape.units[0]
    # Layers that boxes do not take on Hopper are best in small tiles, several per multiprocessor.
    large = () if device.bulk_copies else ((128, 256, 8), (128, 128, 8))
    for bm, bn, warps in (*large, (128, 64, 4), (64, 64, 4)):  # noqa: B007
        bn = min(bn, widest)
        tiles = triton.cdiv(int(num_active), bm) * triton.cdiv(unit_out, bn) * n_tiles
        if tiles >= device.num_sms:
            break
    taps, length = shape.reduction(bk)
    stage = (bm + bn) * bk * dtype.itemsize
    stages = max(min(3 if device.bulk_copies else 4, device.shared_memory // stage), 2)
    splits = min(16, max(taps * length // bk // 4, 1))
    return ConvolutionConfig(bm, bn, bk, warps, stages, max_splits=splits, per_sm=4)


def default_box_config(shape, num_active, dtype, device):
    """Returns the largest tiles that still fill the GPU; 64 x 64 where none do."""
    bk = math.gcd(shape.in_channels, 128 // dtype.itemsize)
    widest = max(triton.next_power_of_2(shape.out_channels), 64)
    tiles = ((256, 128, 8, 3, 6), (128, 128, 8, 4, 1), (64, 128, 4, 4, 1), (64, 64, 4, 6, 0))
    for bm, bn, warps, stages, waves in tiles:  # noqa: B007
        bn = min(bn, widest)
        num_tiles = triton.cdiv(int(num_active), bm) * triton.cdiv(shape.out_channels, bn)
        if num_tiles >= waves * device.num_sms:
            break
    return BoxConfig(bm, bn, bk, 4 if bn < 128 else warps, stages, per_sm=1 if bm > 64 else 2)
