"""Properties of a GPU that launches depend on."""

import contextlib
import functools

import torch

__all__ = ["Device", "current_stream", "device_of", "on_device"]

# Programs per multiprocessor that share the pixels of a memory-bound launch. A launch sized for
# every pixel of a map would start thousands of programs with nothing to do.
_PROGRAMS_PER_SM = 8


class Device:
    """
    Attributes:
        name, capability: select the tables of configurations, its own or those of a related GPU.
        num_sms: multiprocessors.
        shared_memory: bytes that one program may use.
        bulk_copies: whether there is a tensor memory accelerator.
        pdl: whether kernels start up while those before them still run (programmatic dependent
            launch, see dependent_launch.py).
        assembly: whether kernels may hold PTX: they are compiled, not interpreted.
    """

    def __init__(self, device):
        device = torch.device(device)
        self.assembly = device.type == "cuda"
        if self.assembly:
            properties = torch.cuda.get_device_properties(device)
            self.name, self.capability = properties.name, (properties.major, properties.minor)
            self.num_sms = properties.multi_processor_count
            self.shared_memory = getattr(properties, "shared_memory_per_block_optin", 99 << 10)
            self.pdl = self.bulk_copies = properties.major >= 9
        else:  # the interpreter
            self.name, self.capability, self.num_sms = "interpreter", (), 4
            self.shared_memory, self.pdl, self.bulk_copies = 160 << 10, False, True

    @property
    def launch_options(self):
        """Keyword arguments of every launch."""
        return {"PDL": True, "launch_pdl": True} if self.pdl else {"PDL": False}

    def programs(self, num_pixels, pixels_per_tile, per_sm=_PROGRAMS_PER_SM):
        """The number of programs that share the tiles of a launch; at least 1."""
        tiles = -(-num_pixels // pixels_per_tile)
        return max(min(tiles, per_sm * self.num_sms), 1)


@functools.cache
def device_of(device):
    """The Device of a torch.device, looked up once."""
    return Device(device)


def on_device(device):
    """
    Args:
        device (torch.device): where tensors lie.

    Returns:
        context manager: makes a GPU the current one, on which Triton launches its kernels and
        PyTorch makes streams and graphs. PyTorch's own operators need none. Elsewhere nothing
        changes.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def current_stream(device):
    """
    Returns the current CUDA stream of a torch.device. It is found by the index of the device:
    without one PyTorch asks first which device is current, which takes several times as long.
    """
    return torch.cuda.current_stream(device.index)
