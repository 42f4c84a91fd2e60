"""Frames of data sets in any order, and what counts as labelled."""

import logging
import random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.data.files import AnnotationError
from blockcopy_d2.data.videos import load_videos
from tests.data.test_clips import make_config

NAME = "test_videos"


@pytest.fixture
def register():
    def register(frames, **metadata):
        DatasetCatalog.register(NAME, frames if callable(frames) else lambda: frames)
        MetadataCatalog.get(NAME).set(**metadata)

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def frame(video, index=None, **more):
    order = {} if index is None else {"frame_index": index}
    return {"video_id": video, "file_name": f"{video}/{index}.png", **order, **more}


def names_of(videos):
    return [[frame["file_name"] for frame in video] for video in videos]


def test_frames_are_in_the_order_of_their_index_wherever_they_are(register):
    # "10" comes before "9" in the list, as file names are sorted; the videos are interleaved.
    frames = [frame(video, index) for index in range(12) for video in ("b", "a")]
    random.shuffle(frames)
    register(frames)
    first = frames[0]["video_id"]
    second = "a" if first == "b" else "b"
    assert names_of(load_videos(NAME)) == [
        [f"{video}/{index}.png" for index in range(12)] for video in (first, second)
    ]
    loaded = build_clip_loader(make_config(num_frames=5), NAME).dataset
    assert [loaded._dataset[i]["file_name"] for i in range(5)] == [
        f"{first}/{index}.png" for index in range(7, 12)
    ]


def test_without_an_index_the_list_gives_the_order(register):
    register([frame("a", file=0), frame("b", file=1), frame("a", file=2)])
    assert [[f["file"] for f in video] for video in load_videos(NAME)] == [[0, 2], [1]]


@pytest.mark.parametrize(
    "frames, message",
    [
        (
            [frame("a", 0), frame("a", 1), frame("a", 0)],
            "2 frames of .* frame_index 0",
        ),
        ([frame("a", 0), frame("a")], "frame_index None; expected an integer"),
        ([frame("a", "0"), frame("a", "1")], "frame_index '0'; expected an integer"),
        ([frame("a", 0.5)], "frame_index 0.5; expected an integer"),
        ([frame("a", 0), {"file_name": "x.png"}], "a dict without video_id.*x.png"),
        ([{"video_id": 1}], "a dict without file_name"),
        ([], "has no frames"),
    ],
)
def test_an_unknown_order_is_refused(register, frames, message):
    register(frames)
    with pytest.raises(ValueError, match=f"{NAME}.*{message}"):
        load_videos(NAME)


def test_labelled_is_what_has_labels_unless_the_data_set_says(register):
    register(
        [
            frame("a", 0),
            frame("a", 1, annotations=[]),
            frame("a", 2, sem_seg_file_name="x.png"),
            frame("a", 3, annotations=[], labelled=False),
            frame("a", 4, labelled=True),
        ]
    )
    (video,) = load_videos(NAME)
    assert [f["labelled"] for f in video] == [False, True, True, False, True]


def test_where_labels_are_elsewhere_all_frames_are_labelled(register):
    register([frame("a", 0), frame("a", 1)])
    assert all(f["labelled"] for f in load_videos(NAME)[0])


def test_labelled_frames_that_are_cut_are_announced(register, caplog):
    register([frame("a", index, labelled=index % 2 == 0) for index in range(10)])
    build_clip_loader(make_config(num_frames=4), NAME)
    assert "up to 10 frames, of which the last 4 are run" in caplog.text
    assert "3 labelled frames before them" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_clip_loader(make_config(num_frames=10), NAME)
    assert not caplog.text


def test_a_loader_that_fails_is_named_with_its_annotations(register):
    def load():
        raise KeyError("images")

    register(load, json_file="some/annotations.json")
    with pytest.raises(AnnotationError, match=f"{NAME} .*some/annotations.json.*'images'"):
        load_videos(NAME)
