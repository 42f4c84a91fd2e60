"""A folder of images, or a single one, read as a video."""

import os
import re

from .addresses import redact
from .clips import FrameReadError
from .pictures import read_picture
from .video_format import VideoFormat

__all__ = ["IMAGE_EXTENSIONS", "ImageFolder"]

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFolder:
    """
    Images in natural order of their names, or one image. Hidden files are skipped, such as the
    ``._*`` that macOS leaves beside every file.
    """

    live = False

    def __init__(self, folder, rate):
        """
        Args:
            folder (str): a folder, or the file of an image.
            rate (Fraction): frames per second.

        Raises:
            FileNotFoundError: it holds no image.
        """
        self.shown = redact(folder)
        self.name = os.path.basename(os.path.abspath(self.shown))
        self.format = VideoFormat(fps=rate)
        if os.path.isfile(folder):
            self.name, self._files = os.path.splitext(self.name)[0], [folder]
        else:
            self._files = self._list(folder)
        self.num_frames = len(self._files)

    def _list(self, folder):
        names = [
            entry.name
            for entry in os.scandir(folder)
            if entry.is_file()
            and not entry.name.startswith(".")
            and entry.name.lower().endswith(IMAGE_EXTENSIONS)
        ]
        if not names:
            raise FileNotFoundError(
                f"{self.shown} holds no image; expected files with the extensions "
                f"{', '.join(IMAGE_EXTENSIONS)}."
            )
        return [os.path.join(folder, name) for name in sorted(names, key=_natural_key)]

    def probe(self):
        """
        Returns:
            ndarray: the first image.
        """
        return next(self.read())[0]

    def read(self, *, vectors=False):
        """See :meth:`VideoFrames.read`. Images have no vectors."""
        for index, file in enumerate(self._files):
            try:
                image = read_picture(file)
            except Exception as error:  # as in ClipMapper: Pillow raises many types
                raise FrameReadError(
                    redact(file), self.name, index, f"not a readable image ({redact(error)})"
                ) from error
            yield image, float(index / self.format.fps), None


def _natural_key(name):
    # Splitting by a group puts the numbers at the odd places.
    parts = re.split(r"(\d+)", name.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts
