import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from blockcopy_d2.data import build_clip_loader, load_davis, register_davis
from blockcopy_d2.data.davis import __main__ as command
from blockcopy_d2.data.davis import image_file, mask_file, split_file
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path
from blockcopy_d2.visualization import VideoWriter

HEIGHT, WIDTH = 36, 48
NUM_FRAMES = 4


def mask_of(number):
    """An object of 8 x 10 pixels that moves to the right, out of sight on the last frame."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if number < NUM_FRAMES - 1:
        mask[4:12, 5 + number : 15 + number] = True
    return mask


def write_source(root, sequences=("bear", "bus")):
    """A video and a mask per frame, the same sequences in both splits."""
    for split in ("train", "val"):
        for sequence in sequences:
            folder = root / split / sequence
            folder.mkdir(parents=True)
            with VideoWriter(str(folder / "video.mp4"), 24) as writer:
                for number in range(NUM_FRAMES):
                    writer.write(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8))
                    Image.fromarray(mask_of(number)).save(folder / f"mask_{number:05d}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    source, output = (tmp_path_factory.mktemp(name) for name in ("source", "DAVIS"))
    write_source(source)
    command.main(["--source", str(source), "--output", str(output)])
    return output


def test_a_sequence_is_a_clip_with_a_mask_on_every_frame(root):
    dataset = load_davis(str(root), "val")
    assert [d["video_id"] for d in dataset] == ["bear"] * NUM_FRAMES + ["bus"] * NUM_FRAMES
    assert [d["frame_index"] for d in dataset] == [*range(NUM_FRAMES)] * 2
    assert all(d["labelled"] for d in dataset)
    assert {(d["height"], d["width"]) for d in dataset} == {(HEIGHT, WIDTH)}
    assert len({d["image_id"] for d in dataset}) == len(dataset)
    (annotation,) = dataset[1]["annotations"]
    assert np.array_equal(mask_util.decode(annotation["segmentation"]) > 0, mask_of(1))
    assert annotation["bbox"] == [6, 4, 10, 8]
    assert dataset[NUM_FRAMES - 1]["annotations"] == []


def test_single_images_to_train_on(root):
    assert not any("video_id" in d for d in load_davis(str(root), "train", video=False))


def test_the_lists_of_the_data_set_itself(root, tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).symlink_to(root / name)
    lists = tmp_path / "ImageSets" / "480p"
    lists.mkdir(parents=True)
    lines = [
        f"/JPEGImages/480p/bus/{n:05d}.jpg /Annotations/480p/bus/{n:05d}.png\n"
        for n in range(NUM_FRAMES)
    ]
    (lists / "val.txt").write_text("".join(lines))
    assert {d["video_id"] for d in load_davis(str(tmp_path), "val")} == {"bus"}


def test_the_clip_loader_yields_the_frames_of_the_videos(root):
    name = "test_davis"
    register_davis(name, str(root), "val")
    try:
        cfg = load_config(
            config_path("DAVIS/mask_rcnn_R_50_FPN_blockcopy.yaml"),
            ["DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", str(HEIGHT)],
        )
        frames = [inputs for (inputs,) in build_clip_loader(cfg, name, 1)]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert [f["frame_index"] for f in frames] == [*range(NUM_FRAMES)]
    levels = [float(f["image"].float().mean()) for f in frames]
    assert levels == pytest.approx([0, 40, 80, 120], abs=4)


@pytest.mark.parametrize("missing", ["ImageSets", "JPEGImages/480p/bus", "a list"])
def test_the_error_names_the_missing_file(root, tmp_path, missing):
    for name in ("ImageSets", "Annotations", "JPEGImages"):
        if name != missing:
            (tmp_path / name).symlink_to(root / name)
    if missing.startswith("JPEGImages"):
        (tmp_path / "JPEGImages").unlink()
    split = "test" if missing == "a list" else "val"
    with pytest.raises(FileNotFoundError, match="Get it there") as error:
        load_davis(str(tmp_path), split, origin="Get it there.")
    assert ("test.txt" if missing == "a list" else missing.split("/")[0]) in str(error.value)


def test_a_mask_that_is_missing_broken_or_of_another_size(root, tmp_path):
    for name in ("ImageSets", "JPEGImages"):
        (tmp_path / name).symlink_to(root / name)
    target = mask_file(str(tmp_path), "bear", 0)
    (tmp_path / "Annotations" / "480p" / "bear").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="00000.png, the mask of .*00000.jpg, is missing"):
        load_davis(str(tmp_path), "val")
    with open(target, "wb") as f:
        f.write(b"no picture")
    with pytest.raises(ValueError, match="00000.png.*not a readable image"):
        load_davis(str(tmp_path), "val")
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(target)
    with pytest.raises(ValueError, match="5x3 pixels.*48x36"):
        load_davis(str(tmp_path), "val")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_mask_is_all_that_is_not_background(root, tmp_path, mode):
    """However dark its colour is."""
    for name in ("ImageSets", "JPEGImages"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "Annotations", tmp_path / "Annotations")
    mask, opaque = mask_of(0).astype(np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)
    if mode == "P":
        image = Image.fromarray(mask, "P")
        image.putpalette([0, 0, 0, 0, 0, 1])
    elif len(mode) > 1 and mode != "I;16":
        bands = {"RGB": 3, "RGBA": 3, "LA": 1}[mode]
        colour = [0 * mask] * (bands - 1) + [mask]
        image = Image.fromarray(np.stack([*colour, opaque][: len(mode)], axis=2), mode)
    else:
        image = Image.fromarray({"1": mask > 0, "L": mask, "I;16": mask.astype(np.uint16)}[mode])
    image.save(mask_file(str(tmp_path), "bear", 0))
    (annotation,) = load_davis(str(tmp_path), "val")[0]["annotations"]
    assert annotation["bbox"] == [5, 4, 10, 8]


def test_other_files_beside_the_frames(root, tmp_path):
    for name in ("Annotations", "ImageSets"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "JPEGImages", tmp_path / "JPEGImages")
    frame = image_file(str(tmp_path), "bear", 0)
    shutil.copyfile(frame, os.path.join(os.path.dirname(frame), "cover.jpg"))
    with pytest.raises(ValueError, match="cover.jpg is not a frame of DAVIS.*numbers"):
        load_davis(str(tmp_path), "val")


def test_a_list_of_sequences_from_another_editor(root, tmp_path):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).symlink_to(root / name)
    path = tmp_path / "ImageSets" / "2016" / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xef\xbb\xbfbear\r\n\r\n")
    assert {d["video_id"] for d in load_davis(str(tmp_path), "val")} == {"bear"}
    path.write_bytes(b"\xff\xfeb")
    with pytest.raises(ValueError, match="val.txt, the list of the sequences, is not a text file"):
        load_davis(str(tmp_path), "val")


def test_masks_are_taken_by_their_numbers(tmp_path):
    """mask_10.png comes after mask_9.png."""
    source, output = tmp_path / "source", tmp_path / "DAVIS"
    write_source(source, ("bear",))
    for split in ("train", "val"):
        folder = source / split / "bear"
        for number in range(NUM_FRAMES):
            os.rename(folder / f"mask_{number:05d}.png", folder / f"mask_{number + 8}.png")
    command.main(["--source", str(source), "--output", str(output)])
    boxes = [d["annotations"][0]["bbox"] for d in load_davis(str(output), "val")[:3]]
    assert boxes == [[5 + number, 4, 10, 8] for number in range(3)]


def test_a_video_without_a_mask_for_every_frame_is_refused(tmp_path, capsys):
    write_source(tmp_path / "source", ("bear",))
    (tmp_path / "source" / "train" / "bear" / "mask_00003.png").unlink()
    with pytest.raises(SystemExit):
        command.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")])
    assert "4 frames, and there are 3 masks" in capsys.readouterr().err
    assert not (tmp_path / "out" / "ImageSets").exists()


def test_the_data_sets_are_registered(root):
    for split in ("train", "val"):
        for name in (f"davis_{split}", f"davis_video_{split}"):
            assert MetadataCatalog.get(name).thing_classes == ["object"]
    assert image_file("a", "bear", 7).endswith("JPEGImages/480p/bear/00007.jpg")
    assert split_file("a", "val").endswith("ImageSets/2016/val.txt")
