import pickle

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from blockcopy_d2.data import (
    ClipSampler,
    FrameReadError,
    build_clip_loader,
    register_cityscapes_video,
)
from tests.data.cityscapes_tree import HEIGHT, WIDTH, write_clip, write_frame

NAME = "test_clips"


@pytest.fixture
def root(tmp_path):
    """Three clips, registered as NAME."""
    for index in range(3):
        write_clip(tmp_path, f"a_{index:06d}")
    register_cityscapes_video(NAME, str(tmp_path), "val")
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def make_config(num_workers=0, num_frames=20, num_clips=0):
    cfg = get_cfg()
    cfg.INPUT.CLIP = CfgNode({"NUM_FRAMES": num_frames, "NUM_CLIPS": num_clips})
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    cfg.INPUT.MAX_SIZE_TEST = WIDTH
    return cfg


def frame_file(root, clip, index):
    folder = root / "leftImg8bit_sequence" / "val" / "a"
    return folder / f"a_{clip:06d}_{index:06d}_leftImg8bit.png"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_frames_come_in_order(root, num_workers):
    loader = build_clip_loader(make_config(num_workers), NAME)
    batches = list(loader)
    assert len(batches) == len(loader) == 60
    assert all(len(batch) == 1 for batch in batches)
    frames = [batch[0] for batch in batches]
    assert [f["video_id"] for f in frames] == [
        f"a_{clip:06d}_000019" for clip in range(3) for _ in range(20)
    ]
    assert [f["frame_index"] for f in frames] == 3 * list(range(20))
    assert [f["labelled"] for f in frames] == 3 * (19 * [False] + [True])


def test_images_are_read_in_the_model_s_format_and_size(root):
    cfg = make_config()
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT // 2
    frames = [batch[0] for batch in build_clip_loader(cfg, NAME, num_clips=1)]
    image = frames[7]["image"]
    assert image.dtype == torch.uint8 and image.shape == (3, HEIGHT // 2, WIDTH // 2)
    assert (image[2] == 255).all() and (image[1] == 70).all()  # BGR
    assert (frames[7]["height"], frames[7]["width"]) == (HEIGHT, WIDTH)
    cfg.INPUT.FORMAT = "RGB"
    image = next(iter(build_clip_loader(cfg, NAME)))[0]["image"]
    assert (image[0] == 255).all() and (image[1] == 0).all()


def test_fewer_frames_are_the_last_ones_counted_from_zero(root):
    frames = [batch[0] for batch in build_clip_loader(make_config(num_frames=3), NAME)]
    assert len(frames) == 9
    assert [f["frame_index"] for f in frames] == 3 * [0, 1, 2]
    assert [f["labelled"] for f in frames] == 3 * [False, False, True]
    assert frames[0]["file_name"].endswith("a_000000_000017_leftImg8bit.png")


def test_number_of_clips(root):
    assert len(build_clip_loader(make_config(num_clips=2), NAME)) == 40
    assert len(build_clip_loader(make_config(num_clips=2), NAME, num_clips=1)) == 20
    assert len(build_clip_loader(make_config(num_clips=2), NAME, num_clips=0)) == 60
    assert len(build_clip_loader(make_config(), NAME, num_clips=100)) == 60


@pytest.mark.parametrize("options", [{"num_clips": -1}, {"num_frames": 0}])
def test_senseless_numbers_are_refused(root, options):
    with pytest.raises(ValueError, match="INPUT.CLIP.NUM_CLIPS must be at least 0"):
        build_clip_loader(make_config(**options), NAME)


def test_data_sets_of_single_images_are_refused():
    DatasetCatalog.register("test_images", lambda: [{"file_name": "a.png"}])
    try:
        with pytest.raises(ValueError, match="test_images is a data set of single images"):
            build_clip_loader(make_config(), "test_images")
    finally:
        DatasetCatalog.remove("test_images")


def truncate(file):
    file.write_bytes(file.read_bytes()[:100])


def test_frames_that_cannot_be_used_leave_the_others(root):
    truncate(frame_file(root, 0, 4))
    frame_file(root, 1, 0).unlink()
    frame_file(root, 1, 6).write_bytes(b"no image")
    write_frame(frame_file(root, 2, 9), 9, height=HEIGHT + 2)
    frames = [batch[0] for batch in build_clip_loader(make_config(num_workers=2), NAME)]
    assert len(frames) == 60
    errors = {(f["video_id"], f["frame_index"]): f["error"] for f in frames if "error" in f}
    assert all(isinstance(error, FrameReadError) for error in errors.values())
    assert all("image" in f for f in frames if "error" not in f)
    reasons = {
        ("a_000000_000019", 4): "not a readable image",
        ("a_000001_000019", 0): "no such file",
        ("a_000001_000019", 6): "not a readable image",
        ("a_000002_000019", 9): f"its size is {WIDTH}x{HEIGHT + 2}, the clip's is {WIDTH}x{HEIGHT}",
    }
    assert errors.keys() == reasons.keys()
    for (video_id, frame_index), reason in reasons.items():
        error = errors[video_id, frame_index]
        message = str(error)
        assert reason in message
        assert f"Frame {frame_index} of clip {video_id}" in message
        assert error.file_name in message and error.file_name.endswith(".png")


def test_any_damage_becomes_a_frame_read_error(root):
    """Flipped bytes make Pillow raise errors of many types; none may end a worker."""
    file = frame_file(root, 0, 0)
    noise = np.random.randint(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    intact = file.read_bytes()
    cfg = make_config(num_frames=20)
    dataset = build_clip_loader(cfg, NAME, num_clips=1).dataset
    failed = 0
    for position in np.random.randint(0, 200, 150):
        damaged = bytearray(intact)
        damaged[position] ^= 0x55
        file.write_bytes(damaged)
        failed += "error" in dataset[0]
    assert failed > 10


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(FrameReadError("a.png", "clip", 3, "no such file")))
    assert str(error) == "Frame 3 of clip clip cannot be used: a.png: no such file"
    assert (error.video_id, error.frame_index) == ("clip", 3)


@pytest.mark.parametrize("lengths", [[20] * 7, [3, 1, 4, 1, 5], [20], []])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_whole_clips(lengths, world_size):
    clip_of_frame = [clip for clip, length in enumerate(lengths) for _ in range(length)]
    shares = []
    for rank in range(world_size):
        sampler = ClipSampler(lengths, rank=rank, world_size=world_size)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert sum(shares, []) == list(range(sum(lengths)))
    clips = [{clip_of_frame[index] for index in share} for share in shares]
    assert sum(map(len, clips)) == len(lengths), "a clip is split between ranks"
    assert max(map(len, clips)) - min(map(len, clips)) <= 1


def test_the_sampler_takes_the_running_job_s_rank(monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    assert list(ClipSampler([2, 2])) == [2, 3]
