"""
Ids of objects from frame to frame, by ByteTrack of the package ``trackers`` (Apache 2.0, by the
makers of ``supervision``, which had ByteTrack before).
"""

from collections import defaultdict

import numpy as np

from blockcopy_d2.config_key import number

__all__ = ["Tracker", "check_tracking"]

# Objects of lower scores keep a track alive, and start none.
_CERTAIN = 0.5
# ByteTrack ignores lower scores.
LEAST_SCORE = 0.1
_RATE = number(None, most=1e6, open_ends=True)


def check_tracking():
    """
    Raises:
        ImportError: the package cannot be imported; names the extra that brings it.
    """
    try:
        import trackers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--track needs the package trackers ({error}): pip install 'blockcopy-d2[track]'."
        ) from error


class Tracker:
    """
    Gives the objects of a video their ids, from 1. Each class is tracked for itself; ids are unique
    in the video. An object has an id from the second frame on that it is found in; a short time
    out of sight does not end its track.
    """

    def __init__(self, fps, *, make=None):
        """
        Args:
            fps (float): frames per second of the video.
            make (callable or None): given ``fps``, returns a tracker for one class, with the
                interface of ``trackers.ByteTrackTracker``, which is the default.

        Raises:
            ImportError: the package of the default is missing.
            ValueError: ``fps`` is not above 0, or not finite.
        """
        fps = _RATE.check("fps", fps)
        if make is None:
            check_tracking()
            make = _byte_track
        self._trackers = defaultdict(lambda: make(fps))
        self._ids = {}

    def __call__(self, rows, seconds=None):
        """
        Add ``track_id`` to the rows of the next frame that belong to a track.

        Args:
            rows (list[dict]): rows of the frame, of all scores, see :class:`RowMaker`; changed in
                place.
            seconds (float or None): when it is shown.

        Raises:
            ValueError: the rows have no upright boxes.
        """
        groups = defaultdict(list)
        for row in rows:
            if not row.get("isthing", True):
                continue
            if len(row.get("bbox", ())) != 4 or "score" not in row:
                raise ValueError(
                    "Tracks need instances with upright boxes and scores; a model of classes of"
                    " pixels, or of rotated boxes, has none."
                )
            if row["score"] >= LEAST_SCORE:
                groups[row.get("category_id")].append(row)
        # Tracks without an object in this frame grow older.
        for category in [*self._trackers, *(x for x in groups if x not in self._trackers)]:
            self._update(category, groups[category], seconds)

    def _update(self, category, rows, seconds):
        import supervision

        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        detections = supervision.Detections(
            xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            confidence=np.array([row["score"] for row in rows]),
            # The tracker may return them in another order.
            data={"row": np.arange(len(rows))},
        )
        tracked = self._trackers[category].update(detections, timestamp=seconds)
        for track, index in zip(tracked.tracker_id, tracked.data.get("row", ()), strict=True):
            if track >= 0:
                own = (category, int(track))
                rows[index]["track_id"] = self._ids.setdefault(own, len(self._ids) + 1)


def _byte_track(fps):
    from trackers import ByteTrackTracker

    return ByteTrackTracker(
        frame_rate=fps, track_activation_threshold=_CERTAIN, high_conf_det_threshold=_CERTAIN
    )
