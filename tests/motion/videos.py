"""Videos that move by a known amount."""

import av
import numpy as np
import torch

from tests.motion.pictures import texture


def encode(path, frames, *, codec="libx264", **options):
    if codec == "libx264":
        options = {"crf": "10", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())


def pan(count, dx, dy, height=192, width=256):
    """Frames whose content was at (x + dx, y + dy) one frame ago."""
    world = texture(height + 128, width + 128)[0].permute(1, 2, 0).to(torch.uint8).numpy()
    return [
        np.ascontiguousarray(world[64 + t * dy :, 64 + t * dx :][:height, :width])
        for t in range(count)
    ]
