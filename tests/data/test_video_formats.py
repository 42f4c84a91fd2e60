"""Videos look right and keep their times: orientation, colours, clock, pixel shape."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from blockcopy_d2.data import VideoFormat, VideoFrames, video_decoding
from blockcopy_d2.data.video_decoding import DecodedVideo
from blockcopy_d2.visualization import VideoWriter

av = pytest.importorskip("av")
HEIGHT, WIDTH = 48, 80
ONE = 1 << 16
# The eight upright or mirrored quarter turns, as a, b, c, d of a display matrix: x' = a x + c y,
# y' = b x + d y. Below, which corner of the stored picture comes to lie at the top left and the
# top right; corners are numbered from the top left clockwise.
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), (0, 1)),
    "mirrored": ((-1, 0, 0, 1), (1, 0)),
    "upside down": ((-1, 0, 0, -1), (2, 3)),
    "flipped": ((1, 0, 0, -1), (3, 2)),
    "transposed": ((0, 1, 1, 0), (0, 3)),
    "turned clockwise": ((0, 1, -1, 0), (3, 0)),
    "transposed the other way": ((0, -1, -1, 0), (2, 1)),
    "turned counterclockwise": ((0, -1, 1, 0), (1, 2)),
}
LEVELS = (40, 100, 160, 220)


def write_video(
    file,
    *,
    codec="libx264",
    images=None,
    size=(HEIGHT, WIDTH),
    number=4,
    milliseconds=None,
    colors=None,
    sample_aspect_ratio=None,
    tags=None,
):
    """
    Args:
        images (list[ndarray] or None): BGR; default ``number`` grey ones of level 10 i.
        milliseconds (list[int] or None): when each frame is shown; default 12 frames per second.
        colors (dict or None): arguments of ``VideoFrame.reformat`` from BGR to YUV.
        tags (dict or None): attributes of the encoder.
    """
    if images is None:
        images = [np.full((*size, 3), 10 * index, np.uint8) for index in range(number)]
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {}
        if sample_aspect_ratio:
            stream.sample_aspect_ratio = sample_aspect_ratio
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "bgr24")
            frame = frame.reformat(format="yuv420p", **(colors or {}))
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def set_display_matrix(file, a, b, c, d):
    """Writes a matrix into the header of the track, as phones do."""
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, start) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    numbers = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, start, *numbers)
    file.write_bytes(content)
    return file


def four_corners():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:24, :40], image[:24, 40:], image[24:, 40:], image[24:, :40] = LEVELS
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_display_matrix(tmp_path, orientation):
    matrix, (top_left, top_right) = ORIENTATIONS[orientation]
    aspect = Fraction(4, 3)
    file = write_video(tmp_path / "a.mp4", images=[four_corners()] * 2, sample_aspect_ratio=aspect)
    video = VideoFrames(set_display_matrix(file, *matrix))
    turned = matrix[0] == 0
    size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    for image in video:
        assert image.shape == (*size, 3) and image.flags.c_contiguous
        assert abs(int(image[5, 5, 0]) - LEVELS[top_left]) < 8
        assert abs(int(image[5, -5, 0]) - LEVELS[top_right]) < 8
    assert (video.height, video.width) == size
    assert video.video_format.sample_aspect_ratio == (1 / aspect if turned else aspect)


def test_a_picture_whose_exif_data_pyav_does_not_know(tmp_path):
    """PyAV then lists no side data at all; the rotation is still found."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT), (200, 0, 0)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.jpg").rename(tmp_path / "a.mjpeg")
    video = VideoFrames(tmp_path / "a.mjpeg")
    assert (video.height, video.width) == (WIDTH, HEIGHT)


COLOR = (40, 180, 90)
needs_bt2020 = pytest.mark.skipif(
    not hasattr(av.video.reformatter.Colorspace, "BT2020"), reason="PyAV 17 cannot write BT.2020"
)


@pytest.mark.parametrize("size", [(48, 80), (720, 64)])
@pytest.mark.parametrize(
    "matrix, tag",
    [
        (None, None),
        ("ITU601", 5),
        ("ITU601", 6),
        ("ITU709", 1),
        pytest.param("BT2020", 9, marks=needs_bt2020),
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_decoded_by_the_matrix_of_the_file(tmp_path, size, matrix, tag, full_range):
    colors = {
        "dst_colorspace": matrix or ("ITU709" if size[0] >= 720 else "ITU601"),
        "dst_color_range": "JPEG" if full_range else "MPEG",
    }
    tags = {"color_range": 2} if full_range else {}
    if tag is not None:
        tags["colorspace"] = tag
    images = [np.full((*size, 3), COLOR, np.uint8)]
    file = write_video(tmp_path / "a.mp4", images=images, colors=colors, tags=tags)
    video = VideoFrames(file)
    (image,) = video
    assert np.abs(image.astype(int) - COLOR).max() <= 4
    assert video.video_format.colorspace == (tag or 2)
    assert video.video_format.color_range == (2 if full_range else 1 if tag else 0)


def test_all_that_a_header_says(tmp_path):
    tags = {"colorspace": 1, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    video = VideoFrames(write_video(tmp_path / "a.mp4", tags=tags))
    assert video.video_format == VideoFormat(
        fps=Fraction(12), time_base=Fraction(1, 12288), sample_aspect_ratio=None, **tags
    )
    assert video.fps == 12.0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_have_the_time_at_which_they_are_shown(tmp_path, name):
    shown = [500, 540, 640, 670, 1703, 1736]  # the first one late
    video = VideoFrames(write_video(tmp_path / name, number=6, milliseconds=shown))
    times, levels = zip(*[(s, image[9, 9].mean()) for image, s in video.timed()])
    assert np.allclose(1000 * np.array(times), np.array(shown) - 500, atol=1)
    assert np.allclose(levels, 10 * np.arange(6), atol=4)
    assert [image[9, 9].mean() for image in video] == list(levels)


@pytest.mark.parametrize(
    "name, codec", [("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.h264", "libx264")]
)
def test_times_rise_in_files_of_every_kind(tmp_path, name, codec):
    video = VideoFrames(write_video(tmp_path / name, codec=codec, number=8))
    times = [seconds for _, seconds in video.timed()]
    assert times[0] == 0 and np.allclose(np.diff(times), 1 / video.fps)


def test_times_that_go_back_are_made_to_rise():
    class Broken:
        def __init__(self, pts):
            self.pts, self.time_base = pts, Fraction(1, 100)

    reader = DecodedVideo("a.mp4", Fraction(25))
    reader.format = VideoFormat(fps=Fraction(25))
    image = np.zeros((4, 4, 3), np.uint8)
    pts = (10, 14, 14, 3, None, 30)
    reader._decode = lambda vectors: ((Broken(time), image, None) for time in pts)
    times = [seconds for _, seconds, _ in reader.read()]
    assert np.allclose(times, [0, 0.04, 0.05, 0.06, 0.10, 0.20])


def test_a_folder_has_the_times_of_its_rate(tmp_path):
    for index in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{index}.png")
    video = VideoFrames(tmp_path, default_fps=12.5)
    assert [seconds for _, seconds in video.timed()] == [0, 0.08, 0.16]
    assert video.video_format == VideoFormat(fps=Fraction(25, 2))


def set_edit(file, start, duration):
    """
    An edit list: shows from frame ``start`` on, for ``duration`` milliseconds, 0 for the rest.
    """
    content = bytearray(file.read_bytes())
    entry = content.index(b"elst") + 12
    ticks = round(start / 12 * 12288)
    length, _ = struct.unpack_from(">Ii", content, entry)
    struct.pack_into(">Ii", content, entry, duration or length, ticks)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("duration, expected", [(0, 13), (666, 8)])
def test_a_file_that_an_edit_list_cuts_is_not_called_truncated(
    tmp_path, caplog, duration, expected
):
    file = write_video(tmp_path / "a.mp4", number=20)
    video = VideoFrames(set_edit(file, 7, duration))
    levels = [image[9, 9, 0] for image in video]
    assert video.num_frames == len(levels) == expected
    assert levels[0] == pytest.approx(70, abs=5)
    assert not caplog.text


def test_a_video_of_one_frame(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.avi"):
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        video = VideoFrames(write_video(tmp_path / name, codec=codec, number=1))
        assert len(list(video)) == 1 and 1 <= video.fps <= 120
    Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / "a.png")
    video = VideoFrames(tmp_path / "a.png")
    assert video.name == "a" and [image[0, 0, 2] for image in video] == [200]


def test_an_avi_with_pauses_is_not_taken_for_a_truncated_one(tmp_path, caplog):
    """AVI has no times; empty frames mean that the picture stays."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "whole.avi", fps=25) as video:
        for seconds in (0, 0.04, 0.6, 0.64, 0.68, 0.72):
            video.write(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8), seconds)
    frames = VideoFrames(tmp_path / "whole.avi")
    assert frames.num_frames == len(list(frames)) == 6 and not caplog.records
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "part.avi").write_bytes(content[: len(content) * 2 // 3])
    frames = VideoFrames(tmp_path / "part.avi")
    assert len(list(frames)) < 6
    assert "Is it truncated?" in caplog.text


class Ratio:
    """A ratio as PyAV has them from version 19 on: never None, and no number."""

    def __init__(self, numerator, denominator):
        self.numerator, self.denominator = numerator, denominator

    def __bool__(self):
        return self.numerator != 0


def test_ratios_of_any_version_of_pyav():
    values = None, Ratio(0, 1), Fraction(0), Ratio(30000, 1001), Fraction(1, 90000)
    found = [video_decoding._fraction(value) for value in values]
    assert found == [None, None, None, Fraction(30000, 1001), Fraction(1, 90000)]
    assert all(type(value) is Fraction for value in found[3:])


def test_pyav_19_has_no_option_for_tags(tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", images=[four_corners()] * 2)
    opened, open_ = [], av.open

    def open_19(file, *, format=None, timeout=None, options=None):
        opened.append(file)
        return open_(file, format=format, timeout=timeout, options=options)

    monkeypatch.setattr(av, "__version__", "19.0.2")
    monkeypatch.setattr(av, "open", open_19)
    assert len(list(VideoFrames(file))) == 2 and opened
