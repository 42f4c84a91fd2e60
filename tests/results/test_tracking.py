"""Tracks: the same object has the same id. The tracker itself is another package's."""

import sys
import types

import numpy as np
import pytest

from blockcopy_d2.results import RowMaker, Tracker
from tests.results.test_rows import found


class Detections:
    """The part of supervision's class that is used."""

    def __init__(self, xyxy, confidence, data, tracker_id=None):
        self.xyxy, self.confidence, self.data, self.tracker_id = xyxy, confidence, data, tracker_id


class ByPlace:
    """A tracker that knows an object by its row in the picture, from its second frame on."""

    def __init__(self):
        self._known, self.times = {}, []

    def update(self, detections, timestamp=None):
        self.times.append(timestamp)
        order = np.argsort(detections.xyxy[:, 0])[::-1]
        top = detections.xyxy[order, 1]
        ids = np.array([self._known.get(y, -1) for y in top], dtype=int)
        for y in top:
            self._known.setdefault(y, len(self._known))
        return Detections(None, None, {"row": detections.data["row"][order]}, ids)


@pytest.fixture
def plain(monkeypatch):
    """Stands for supervision, which may be missing."""
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))


def row(x, y, score=0.9, **more):
    return {"bbox": [x, y, 10, 10], "score": score, **more}


def ids(tracker, *rows, seconds=None):
    tracker(rows, seconds)
    return [row.get("track_id") for row in rows]


@pytest.mark.usefixtures("plain")
def test_ids_are_of_one_video_and_of_one_class():
    made = []
    tracker = Tracker(10, make=lambda fps: made.append(ByPlace()) or made[-1])
    assert ids(tracker, row(0, 0, category_id=1), row(5, 40, category_id=1)) == [None, None]
    moved = [row(3, 40, category_id=1), row(4, 0, category_id=1), row(4, 0, category_id=2)]
    assert ids(tracker, *moved, seconds=0.1) == [2, 1, None]
    assert ids(tracker, row(4, 0, category_id=2), row(9, 0, category_id=1)) == [3, 1]
    assert [len(x.times) for x in made] == [3, 2] and made[0].times == [None, 0.1, None]
    assert ids(tracker) == [] and made[1].times == [0.1, None, None], "absent objects grow older"


@pytest.mark.usefixtures("plain")
def test_stuff_and_uncertain_objects_have_no_track():
    tracker = Tracker(10, make=lambda fps: ByPlace())
    for _ in range(2):
        stuff = {"category_id": 1, "isthing": False, "bbox": [0, 0, 9, 9]}
        found_ids = ids(tracker, stuff, row(0, 0, 0.05, category_id=1), row(0, 20, category_id=1))
    assert found_ids == [None, None, 1]


@pytest.mark.usefixtures("plain")
def test_the_tracker_sees_what_is_below_the_threshold():
    make = RowMaker(threshold=0.8, tracker=Tracker(10, make=lambda fps: ByPlace()))
    instances = found((0, 0, 9, 9), scores=[0.3])
    assert make({"instances": instances}, 0, 0.0) == []
    (again,) = make({"instances": found((0, 0, 9, 9), scores=[0.9])}, 1, 0.1)
    assert again["track_id"] == 1


@pytest.mark.parametrize("wrong", [{"category_id": 1}, {"bbox": [1, 2, 3, 4, 5], "score": 1}])
def test_what_cannot_be_tracked_says_so(wrong):
    with pytest.raises(ValueError, match="Tracks need instances with upright boxes"):
        Tracker(10, make=lambda fps: ByPlace())([wrong])


@pytest.mark.parametrize("fps", [0, -25, float("nan"), "25 fps"])
def test_a_rate_that_makes_no_sense_is_refused(fps):
    with pytest.raises(ValueError, match="^fps is .*; it must be"):
        Tracker(fps, make=lambda fps: None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ImportError, match=r"blockcopy-d2\[track\]"):
        Tracker(10)


def test_byte_track_follows_objects_that_cross():
    pytest.importorskip("trackers")
    tracker, seen = Tracker(10), []
    for frame in range(12):
        rows = [row(10 + 4 * frame, 10, category_id=1), row(60 - 4 * frame, 30, category_id=1)]
        if frame == 6:
            rows.pop()  # Out of sight for a frame.
        seen.append(ids(tracker, *rows, seconds=frame / 10))
    assert seen[0] == [None, None] and seen[6] == [1]
    assert all(pair == [1, 2] for pair in [*seen[1:6], *seen[7:]])
