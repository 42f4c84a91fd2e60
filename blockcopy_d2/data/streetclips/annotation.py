"""
The picture together with its annotation.

Every polygon is rasterised once, by the call that cityscapesscripts makes of it
(`ImageDraw.polygon` on a picture of mode "I"). An object may paint only the pixels that its polygon
covers, so annotation and picture agree pixel by pixel, even where objects hide each other.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageDraw


@dataclass
class Annotation:
    """
    Polygons of one picture in drawing order; a later one hides the earlier ones.

    Attributes:
        height, width: picture size in pixels.
        labels: Cityscapes label of each polygon.
        polygons: integer (column, row) points of each polygon.
        index: (H, W) int32, position of the polygon seen at each pixel, -1 where there is none.
    """

    height: int
    width: int
    labels: list[str] = field(default_factory=list)
    polygons: list[list[tuple[int, int]]] = field(default_factory=list)
    index: np.ndarray | None = None

    def to_json(self) -> dict:
        """The contents of a Cityscapes `*_gtFine_polygons.json`."""
        objects = [
            {"label": label, "polygon": [list(point) for point in polygon]}
            for label, polygon in zip(self.labels, self.polygons)
        ]
        return {"imgHeight": self.height, "imgWidth": self.width, "objects": objects}


@dataclass(frozen=True)
class Sprite:
    """
    A drawn object, cut out.

    Attributes:
        left, top: position of its upper left pixel in the picture.
        colour: (h, w, 3) uint8, premultiplied by `alpha`.
        alpha: (h, w) uint8 coverage; None if the object covers all of its polygon.
        polygon: (n, 2) int32 silhouette in picture pixels.
    """

    left: int
    top: int
    colour: np.ndarray
    alpha: np.ndarray | None
    polygon: np.ndarray


def outline(mask: np.ndarray, left: int, top: int, tolerance: float) -> np.ndarray | None:
    """
    Outer contour of the largest region of a mask.

    Args:
        mask: (h, w) bool.
        left, top: position of the mask in the picture.
        tolerance: allowed deviation of the polygon from the contour, in pixels.

    Returns:
        (n, 2) int32 picture coordinates with n >= 3, or None if there is no such region.
    """
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return None
    polygon = cv2.approxPolyDP(max(contours, key=cv2.contourArea), tolerance, True)[:, 0]
    return polygon + np.array([left, top], np.int32) if len(polygon) >= 3 else None


class Canvas:
    """A picture painted from back to front, together with its annotation."""

    def __init__(self, height: int, width: int):
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels: list[str] = []
        self.polygons: list[list[tuple[int, int]]] = []
        self._index = Image.new("I", (width, height), -1)
        self._drawer = ImageDraw.Draw(self._index)

    def copy(self) -> "Canvas":
        """An independent canvas with the same contents."""
        height, width = self.image.shape[:2]
        other = Canvas(height, width)
        other.image[:] = self.image
        other.labels, other.polygons = list(self.labels), list(self.polygons)
        other._index.paste(self._index)
        return other

    def annotate(self, label: str, polygon: np.ndarray) -> tuple[slice, slice, np.ndarray]:
        """
        Adds a polygon on top of all others.

        Args:
            label: Cityscapes label.
            polygon: (n, 2) int32 points inside the picture.

        Returns:
            rows and columns of the polygon's box, and the bool mask of its pixels therein.
        """
        points = [(int(x), int(y)) for x, y in polygon]
        self._drawer.polygon(points, fill=len(self.labels))
        left, top = (int(v) for v in polygon.min(axis=0))
        right, bottom = (int(v) + 1 for v in polygon.max(axis=0))
        mask = np.asarray(self._index.crop((left, top, right, bottom))) == len(self.labels)
        self.labels.append(label)
        self.polygons.append(points)
        return slice(top, bottom), slice(left, right), mask

    def paint(self, label: str, sprite: Sprite) -> None:
        """Annotates a sprite and blends it in, cut off at exactly its annotated pixels."""
        rows, columns, mask = self.annotate(label, sprite.polygon)
        inner = (
            slice(rows.start - sprite.top, rows.stop - sprite.top),
            slice(columns.start - sprite.left, columns.stop - sprite.left),
        )
        target = self.image[rows, columns]
        if sprite.alpha is None:
            np.copyto(target, sprite.colour[inner], where=mask[..., None])
            return
        keep = np.where(mask, sprite.alpha[inner], 0).astype(np.uint8)
        rest = cv2.merge([255 - keep] * 3)
        over = cv2.bitwise_and(sprite.colour[inner], cv2.merge([mask.astype(np.uint8) * 255] * 3))
        cv2.add(cv2.multiply(target, rest, scale=1 / 255), over, dst=target)
        self.image[rows, columns] = target

    def annotation(self) -> Annotation:
        """The annotation of everything painted so far."""
        height, width = self.image.shape[:2]
        index = np.asarray(self._index).astype(np.int32)
        return Annotation(height, width, list(self.labels), list(self.polygons), index)
