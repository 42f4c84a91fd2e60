"""Frames on a device are mapped as Detectron2 maps them on the host, bit for bit."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from blockcopy_d2.data import FrameMapper, frame_mapper
from blockcopy_d2.data.device_resize import resize_picture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def picture(size, seed=0):
    """Noise with all grey levels, beside smooth ramps."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, size[1])[: size[1] // 2, None]
    image[: size[0] // 2, : size[1] // 2] = ramp
    return image


@pytest.mark.parametrize(
    "before, after",
    [
        ((96, 160), (128, 213)),
        ((1024, 2048), (667, 1333)),
        ((720, 1280), (750, 1333)),  # ratios that put many sums halfway between grey levels
        ((64, 64), (64, 100)),
        ((64, 64), (100, 64)),
        ((333, 517), (40, 62)),
        ((5, 3), (64, 99)),
        ((7, 1), (1, 7)),
        # Pillow 13 and later resize along columns first for the first size, and not for the second.
        ((96, 160), (64, 213)),
        ((147, 38), (102, 16)),
        ((137, 129), (41, 17)),
        ((50, 70), (50, 70)),
    ],
)
def test_pictures_are_resized_as_by_pillow(before, after):
    image = picture(before)
    expected = np.asarray(Image.fromarray(image).resize(after[::-1], Image.BILINEAR))
    found = resize_picture(torch.from_numpy(image).to(DEVICE).permute(2, 0, 1), after)
    found = found.permute(1, 2, 0).cpu().numpy()
    difference = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape and difference.max() == 0


def test_without_opencv_pictures_are_the_same(monkeypatch):
    image, inputs = picture((60, 90)), []
    for module in (cv2, None):
        monkeypatch.setattr(frame_mapper, "cv2", module)
        mapper = FrameMapper(augmentations=[T.Resize((31, 47))], image_format="RGB")
        inputs.append(mapper(image)["image"])
    assert torch.equal(*inputs)


def test_only_drawing_needs_opencv():
    """OpenCV may be missing, or may not find libraries of the system, such as libGL."""
    program = "import sys; sys.modules['cv2'] = None; import blockcopy_d2.data, blockcopy_d2.batch"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


AUGMENTATIONS = {
    "none": [],
    "shortest": [T.ResizeShortestEdge(128, 200, "choice")],
    "longest": [T.ResizeShortestEdge([800], 250, "choice")],
    "off": [T.ResizeShortestEdge([0], 1333, "choice")],
    "both": [T.Resize((77, 99)), T.ResizeShortestEdge([64], 1333, "choice")],
}


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_tensors_are_mapped_as_arrays(name, image_format):
    mapper = FrameMapper(augmentations=AUGMENTATIONS[name], image_format=image_format)
    assert mapper.takes_tensors
    image = picture((90, 160))
    expected, scale = mapper(image), mapper.scale
    points = mapper.transforms.apply_coords(np.array([[10.0, 20.0]]))
    tensor = torch.from_numpy(image).to(DEVICE)
    # Also in planes, and with another order of strides.
    for given in (tensor, tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        found = mapper(given)
        assert found["image"].device == given.device and found["image"].is_contiguous()
        assert torch.equal(found["image"].cpu(), expected["image"])
        assert (found["height"], found["width"]) == (90, 160) and mapper.scale == scale
        assert np.array_equal(mapper.transforms.apply_coords(np.array([[10.0, 20.0]])), points)
        # The frame's memory is not kept, even if its order is right already.
        before = found["image"].clone()
        given.fill_(0)
        assert torch.equal(found["image"], before)
        given.copy_(torch.from_numpy(image))


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_arrays_are_mapped_as_by_the_predictor_of_detectron2(name, image_format):
    mapper = FrameMapper(augmentations=AUGMENTATIONS[name], image_format=image_format)
    image = picture((90, 160))
    expected = image[:, :, ::-1] if image_format == "RGB" else image
    for augmentation in AUGMENTATIONS[name]:
        expected = augmentation.get_transform(expected).apply_image(expected)
    expected = torch.as_tensor(expected.astype("float32").transpose(2, 0, 1))
    # Arrays of any strides, and read-only ones.
    image.flags.writeable = False
    mirrored = image[:, ::-1].copy()[:, ::-1]
    for given in (image, mirrored, np.asfortranarray(image)):
        found = mapper(given)["image"]
        assert found.dtype == torch.uint8 and found.is_contiguous()
        assert torch.equal(found.float(), expected)


def test_what_keeps_its_size_is_not_resized(monkeypatch):
    mapper = FrameMapper(augmentations=[T.ResizeShortestEdge([90], 999, "choice")])
    monkeypatch.setattr(T.ResizeTransform, "apply_image", None)
    image = picture((90, 160))
    assert np.array_equal(mapper(image)["image"].permute(1, 2, 0).numpy(), image)
    assert mapper.scale == 1 and len(mapper.transforms.transforms) == 1


def test_other_augmentations_take_arrays():
    for augmentation in (T.RandomFlip(prob=1.0), T.Resize((32, 32), interp=Image.NEAREST)):
        mapper = FrameMapper(augmentations=[augmentation])
        assert not mapper.takes_tensors
        with pytest.raises(TypeError, match="A frame is a torch.Tensor; expected a numpy array"):
            mapper(torch.zeros(32, 32, 3, dtype=torch.uint8))

    class Own(FrameMapper):
        def __call__(self, image):
            return super().__call__(255 - image)

    assert not Own().takes_tensors


def test_pictures_of_any_size_are_resized_as_by_pillow():
    generator = np.random.default_rng(0)
    for _ in range(60):
        before, after = (tuple(generator.integers(1, 99, 2).tolist()) for _ in range(2))
        test_pictures_are_resized_as_by_pillow(before, after)
