import cv2
import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from blockcopy_d2.data import FrameReadError, VideoFrames, as_frame, as_picture, read_picture

LEVELS = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
EXPECTED = np.rint(LEVELS / 257)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "color.png", "color.tif", "alpha.png"])
def test_sixteen_bits(tmp_path, name):
    planes = {"a": 1, "color": 3, "alpha": 4}[name.split(".")[0]]
    cv2.imwrite(str(tmp_path / name), np.squeeze(np.stack([LEVELS] * planes, axis=-1)))
    image = read_picture(tmp_path / name)
    assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
    assert np.abs(image - EXPECTED[..., None]).max() <= 1
    (frame,) = VideoFrames(tmp_path / name)
    assert np.array_equal(frame, image)


def test_big_endian_and_real_numbers(tmp_path):
    Image.fromarray(LEVELS.astype(">u2")).save(tmp_path / "a.tif")
    assert np.array_equal(read_picture(tmp_path / "a.tif")[..., 0], EXPECTED)
    Image.fromarray((LEVELS / 65535).astype(np.float32)).save(tmp_path / "b.tif")
    assert np.abs(read_picture(tmp_path / "b.tif")[..., 0] - EXPECTED).max() <= 1


@pytest.mark.parametrize(
    "values, message",
    [
        (LEVELS.astype(np.float32), "real numbers go from 0 to 65535; expected 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "real numbers go from nan"),
        (LEVELS.astype(np.int32), "32 bits"),
    ],
)
def test_numbers_of_no_known_range_are_named(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(FrameReadError, match=rf"a\.tif: not a readable image \(.*{message}"):
        VideoFrames(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_eight_bits_are_as_detectron2_reads_them(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    for format in ("BGR", "RGB"):
        image = read_picture(tmp_path / "a.png", format)
        assert np.array_equal(image, read_image(str(tmp_path / "a.png"), format))


def test_frames_are_arrays_or_pil_pictures():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    assert as_frame(pixels) is pixels
    assert np.array_equal(as_frame(Image.fromarray(pixels[:, :, ::-1])), pixels)


@pytest.mark.parametrize(
    "thing, error, message",
    [
        (np.zeros((3, 8, 9), np.uint8), ValueError, r"shape \(3, 8, 9\).*transpose\(1, 2, 0\)"),
        (np.zeros((8, 9), np.uint8), ValueError, r"\[picture\] \* 3"),
        (np.zeros((8, 9, 1), np.uint8), ValueError, r"repeat\(3, axis=2\)"),
        (np.zeros((8, 9, 4), np.uint8), ValueError, r"picture\[..., :3\]"),
        (np.zeros((8, 9, 3), np.float32), ValueError, r"picture \* 255"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, r"shape \(0, 9, 3\)"),
        (np.zeros((8, 9, 3), np.uint16), ValueError, "A frame is uint16"),
        ([[1, 2, 3]], TypeError, "A frame is a builtins.list; expected a numpy array"),
        (None, TypeError, "NoneType"),
        ("a.png", TypeError, "A frame is a builtins.str"),
    ],
)
def test_what_is_no_frame_is_named(thing, error, message):
    with pytest.raises(error, match=message):
        as_frame(thing)


def test_tensors_are_pictures_on_a_gpu_alone():
    pixels = np.zeros((8, 9, 3), np.uint8)
    assert as_picture(pixels) is pixels
    for thing in (torch.from_numpy(pixels), [[1, 2, 3]], None):
        with pytest.raises(TypeError, match="expected a numpy array.* on a GPU may be tensors"):
            as_picture(thing)
    with pytest.raises(ValueError, match=r"A frame is uint8 of shape \(3, 8, 9\)"):
        as_picture(pixels.transpose(2, 0, 1))
    meta = torch.empty(8, 9, 3, dtype=torch.uint8, device="meta")
    with pytest.raises(TypeError, match="A frame is a torch.Tensor"):
        as_picture(meta)
