"""StreetClips: annotation against picture, determinism, layout, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from blockcopy_d2.data.streetclips import FRAMES, LABELLED, Clip, write_split
from blockcopy_d2.data.streetclips.__main__ import main
from blockcopy_d2.data.streetclips.camera import Camera
from blockcopy_d2.data.streetclips.ordering import paint_order

THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
SIZE = dict(height=128, width=256)


def expected_ids(annotation):
    """(H, W) label ids and instance ids by Cityscapes' rules from the renderer's own buffer."""
    labels, instances, counts = [], [], {}
    for name in annotation.labels:
        label = name2label[name]
        labels.append(label.id)
        instances.append(label.id)
        if label.hasInstances:
            instances[-1] = label.id * 1000 + counts.get(name, 0)
            counts[name] = counts.get(name, 0) + 1
    assert annotation.index.min() >= 0, "every pixel belongs to something"
    return np.array(labels)[annotation.index], np.array(instances)[annotation.index]


@pytest.mark.parametrize("index", [0, 1])
def test_id_images_agree_with_the_object_index(tmp_path, index):
    write_split(tmp_path, "val", num_clips=index + 1, seed=3, workers=1, labelled_only=True, **SIZE)
    _, annotation = Clip(3, "val", index, **SIZE).render(LABELLED)
    labels, instances = expected_ids(annotation)
    stem = tmp_path / "gtFine/val/buchenfeld" / f"buchenfeld_{index:06d}_000019_gtFine"
    assert (np.asarray(Image.open(f"{stem}_labelIds.png")) == labels).all()
    assert (np.asarray(Image.open(f"{stem}_instanceIds.png")) == instances).all()
    train_ids = np.asarray(Image.open(f"{stem}_labelTrainIds.png"))
    assert (train_ids[labels == name2label["car"].id] == name2label["car"].trainId).all()
    described = json.loads(Path(f"{stem}_polygons.json").read_text())
    assert [o["label"] for o in described["objects"]] == annotation.labels
    assert (described["imgHeight"], described["imgWidth"]) == (128, 256)


def test_an_object_paints_exactly_its_annotated_pixels(monkeypatch):
    monkeypatch.setattr(Clip, "_shadows", lambda *rest: None)
    clip, plain = (Clip(1, "val", 0, 256, 512) for _ in range(2))
    for one in (clip, plain):
        monkeypatch.setattr(one._effects, "apply", lambda image, *rest: image)
    car = [t for t in clip.scene.things if t.parts[0][0] == "car"][-1]
    draw = plain._draw
    monkeypatch.setattr(
        plain, "_draw", lambda thing, *rest: None if thing == car else draw(thing, *rest)
    )
    with_car, annotation = clip.render(LABELLED)
    without, rest = plain.render(LABELLED)
    assert len(annotation.labels) == len(rest.labels) + 1
    number = next(i for i, (a, b) in enumerate(zip(annotation.polygons, rest.polygons)) if a != b)
    silhouette = Image.new("I", (512, 256))
    ImageDraw.Draw(silhouette).polygon(annotation.polygons[number], fill=1)
    changed = (with_car != without).any(axis=2)
    assert not changed[np.asarray(silhouette) == 0].any()
    assert changed[annotation.index == number].mean() > 0.95


def test_frames_can_be_drawn_alone_and_again():
    whole = Clip(5, "train", 3, **SIZE)
    frames = [whole.render(frame)[0] for frame in (0, 10, 11)]
    image, _ = Clip(5, "train", 3, **SIZE).render(11)
    assert (image == frames[2]).all()
    assert (frames[1] != frames[2]).any()


def test_seed_split_and_index_each_make_another_clip():
    ours = Clip(5, "train", 3, **SIZE).render(0)[0].astype(int)
    for other in [(6, "train", 3), (5, "val", 3), (5, "train", 4)]:
        theirs = Clip(*other, **SIZE).render(0)[0].astype(int)
        assert np.abs(ours - theirs).mean() > 5, other


def test_size_changes_the_resolution_not_the_scene():
    small, large = (Clip(2, "val", 1, h, 2 * h) for h in (128, 256))
    assert small.scene.things == large.scene.things
    a, b = (clip.render(LABELLED)[1] for clip in (small, large))
    same = np.array(a.labels)[a.index] == np.array(b.labels)[b.index][::2, ::2]
    assert same.mean() > 0.9


def test_every_class_occurs_in_a_small_split():
    counts = dict.fromkeys(THINGS, 0)
    for index in range(8):
        annotation = Clip(1, "val", index, **SIZE).render(LABELLED)[1]
        seen = np.bincount(annotation.index.ravel(), minlength=len(annotation.labels))
        for label, pixels in zip(annotation.labels, seen):
            if label in counts and pixels >= 5:
                counts[label] += 1
    assert min(counts.values()) >= 6, counts


def test_both_camera_kinds_and_distractors():
    clips = [Clip(1, "val", index, **SIZE) for index in range(4)]
    assert [clip.scene.camera.static for clip in clips] == [True, True, True, False]
    # Even where nothing moves the sensor noise makes frames differ.
    first, second = (clips[0].render(frame)[0].astype(int) for frame in (3, 4))
    assert np.abs(first - second).mean() > 0.3


def test_layout_and_resuming(tmp_path):
    write_split(tmp_path, "train", num_clips=1, workers=1, **SIZE)
    sequence = sorted((tmp_path / "leftImg8bit_sequence/train/ahornstadt").iterdir())
    assert [p.name for p in sequence] == [
        f"ahornstadt_000000_{frame:06d}_leftImg8bit.png" for frame in range(FRAMES)
    ]
    labelled = tmp_path / "leftImg8bit/train/ahornstadt/ahornstadt_000000_000019_leftImg8bit.png"
    assert labelled.read_bytes() == sequence[LABELLED].read_bytes()
    sequence[4].unlink()
    times = [p.stat().st_mtime_ns for p in sequence[:4]]
    write_split(tmp_path, "train", num_clips=1, workers=1, **SIZE)
    assert sequence[4].exists(), "an incomplete clip is drawn again"
    assert [p.stat().st_mtime_ns for p in sequence[:4]] != times
    times = [p.stat().st_mtime_ns for p in sequence]
    write_split(tmp_path, "train", num_clips=1, workers=1, **SIZE)
    assert [p.stat().st_mtime_ns for p in sequence] == times, "a complete clip is left alone"
    assert not [p for p in tmp_path.rglob(".*")], "no temporary file stays behind"


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    write_split(tmp_path, "val", num_clips=1, workers=1, labelled_only=True, **SIZE)
    with pytest.raises(ValueError, match="choose another output folder"):
        write_split(tmp_path, "val", num_clips=1, workers=1, seed=9, **SIZE)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--clips", "0"], "not a positive whole number"),
        (["--clips", "1", "--size", "300x400"], "invalid choice"),
        (["--clips", "1", "--seed", "-2"], "is negative"),
        ([], "required"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--split", "val", *arguments])
    assert message in capsys.readouterr().err


def test_clip_arguments_are_checked():
    with pytest.raises(ValueError, match="choose one of"):
        Clip(1, "validation", 0)
    with pytest.raises(ValueError, match="twice the height"):
        Clip(1, "val", 0, 512, 512)
    with pytest.raises(IndexError, match="frame 20"):
        Clip(1, "val", 0, **SIZE).render(20)


def test_paint_order_with_a_long_object():
    camera = Camera(128, 256, 280.0, 56.0, 1.4)

    def box(x0, x1, z0, z1):
        return np.array([[x0, z0], [x0, z1], [x1, z1], [x1, z0]], float)

    tram, car, walker = box(-8.2, -5.8, 15, 40), box(-4.3, -2.5, 16, 20), box(-10.2, -9.8, 19, 21)
    behind = box(-1, 1, -9, -5)
    order = paint_order([tram, car, walker, behind], camera)
    assert order.index(0) < order.index(1), "the car stands between camera and tram"
    assert order.index(2) < order.index(0), "the tram hides who walks beyond it"
    assert 3 not in order
