"""COCO's result format: a JSON list of rows, which ``pycocotools.coco.COCO.loadRes`` reads."""

import json

__all__ = ["CocoWriter"]


class CocoWriter:
    """Writes a row per line, as the frames come."""

    suffix = ".json"

    @staticmethod
    def check(*, tracks):
        """Nothing is needed."""

    def __init__(self, path):
        """
        Args:
            path (str): path of the file to write.
        """
        self._file = open(path, "w", encoding="utf-8")
        self._file.write("[")
        self._separator = "\n"

    def add(self, rows, seconds):
        """
        Args:
            rows (list[dict]): rows of the next frame.
            seconds (float or None): when it is shown.
        """
        for row in rows:
            self._file.write(self._separator + json.dumps(row, allow_nan=False))
            self._separator = ",\n"

    def close(self):
        """Finish the file."""
        self._file.write("\n]\n")
        self._file.close()

    def abandon(self):
        """Close the file as it is."""
        self._file.close()
