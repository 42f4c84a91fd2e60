"""The result format of YouTube-VIS: a JSON list of tracks, each with its masks in all frames."""

import json
from collections import defaultdict

__all__ = ["YtvisWriter"]


class YtvisWriter:
    """
    Writes a track per line, once the video is over: ``video_id`` (1), ``track_id``,
    ``category_id`` (the one with the largest sum of scores), ``score`` (the mean), and lists of
    the length of the video: ``segmentations`` and ``bboxes``, null where the track has none, and
    ``times``. Until then run lengths are kept in memory. Rows without a track, such as stuff, are
    left out.
    """

    suffix = ".ytvis.json"

    @staticmethod
    def check(*, tracks):
        """
        Raises:
            ValueError: there will be no tracks.
        """
        if not tracks:
            raise ValueError(
                "The format ytvis has a row per track: add --track, or choose another format."
            )

    def __init__(self, path):
        """
        Args:
            path (str): path of the file to write.
        """
        self._file = open(path, "w", encoding="utf-8")
        self._times = []
        self._tracks = defaultdict(dict)

    def add(self, rows, seconds):
        """
        Args:
            rows (list[dict]): rows of the next frame, with ``track_id``.
            seconds (float or None): when it is shown.
        """
        for row in rows:
            if "track_id" in row:
                self._tracks[row["track_id"]][len(self._times)] = row
        self._times.append(seconds)

    def close(self):
        """Write the tracks."""
        self._file.write("[")
        for number, track in enumerate(sorted(self._tracks)):
            line = json.dumps(self._track(track), allow_nan=False)
            self._file.write(("," if number else "") + "\n" + line)
        self._file.write("\n]\n")
        self._file.close()

    def abandon(self):
        """Close the file as it is."""
        self._file.close()

    def _track(self, number):
        rows = self._tracks[number]
        weights = defaultdict(float)
        for row in rows.values():
            weights[row.get("category_id")] += row["score"]
        length = range(len(self._times))
        track = {
            "video_id": 1,
            "track_id": number,
            "category_id": max(weights, key=weights.get),
            "score": round(sum(row["score"] for row in rows.values()) / len(rows), 6),
            "times": self._times,
            "bboxes": [rows[i]["bbox"] if i in rows else None for i in length],
        }
        if any("segmentation" in row for row in rows.values()):
            masks = [rows[i].get("segmentation") if i in rows else None for i in length]
            track["segmentations"] = masks
        return track
