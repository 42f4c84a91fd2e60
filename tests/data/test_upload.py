"""Pictures sent to a device arrive unchanged, even if their memory is overwritten."""

import threading

import numpy as np
import pytest
import torch

from blockcopy_d2.data import SentPicture, Uploader

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def pictures(number, size=(64, 96)):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(number)]


def test_memory_may_be_used_again_at_once():
    uploader, originals = Uploader(DEVICE), pictures(40)
    buffer, sent = np.empty_like(originals[0]), []
    for image in originals:
        buffer[:] = image
        sent.append(uploader.send(buffer))
    buffer[:] = 0
    for image, picture in zip(originals, sent, strict=True):
        assert tuple(picture.shape) == image.shape
        taken = picture.take()
        assert taken.device == DEVICE and np.array_equal(taken.cpu().numpy(), image)


@pytest.mark.parametrize("turn", [lambda x: x[::-1], lambda x: x[:, :, ::-1], np.asfortranarray])
def test_arrays_of_any_strides(turn):
    image = turn(pictures(1)[0])
    image.flags.writeable = False
    assert np.array_equal(Uploader(DEVICE).send(image).take().cpu().numpy(), image)


def test_tensors_are_taken_as_they_are():
    tensor = torch.from_numpy(pictures(1)[0]).to(DEVICE)
    assert SentPicture(tensor).take().data_ptr() == tensor.data_ptr()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs an NVIDIA GPU")
def test_buffers_are_used_again_only_when_they_are_done_with():
    """A GPU far behind the host: a copy still to come must find its bytes, and so must readers."""
    uploader, originals = Uploader(DEVICE), pictures(30, (1024, 2048))
    totals, lock = [], threading.Lock()

    def send():
        for image in originals:
            with lock:
                totals.append(uploader.send(image))

    thread = threading.Thread(target=send)
    torch.cuda._sleep(200_000_000)
    with torch.cuda.stream(uploader._side):
        torch.cuda._sleep(100_000_000)
    thread.start()
    sums = []
    while len(sums) < len(originals):
        with lock:
            picture = totals.pop(0) if totals else None
        if picture is not None:
            sums.append(picture.take().long().sum())
            del picture
    thread.join()
    assert [int(x) for x in sums] == [int(image.sum()) for image in originals]


def test_a_copy_is_sent_without_another():
    uploader, (image,) = Uploader(DEVICE), pictures(1)
    copy = uploader.copy(image[::-1])
    assert np.array_equal(copy, image[::-1]) and copy.flags.c_contiguous and copy.flags.writeable
    made = []
    uploader._pinned_copy = lambda picture: made.append(picture) or torch.from_numpy(picture.copy())
    sent = uploader.send(copy, stays=True)
    sent.wait()
    assert not made and np.array_equal(sent.take().cpu().numpy(), image[::-1])
    # Copied again: pictures that may change, and those that a copy was made from.
    uploader.send(copy)
    uploader.send(image, stays=True)
    assert len(made) == 2


def test_pinned_memory_has_a_limit(monkeypatch):
    """Callers who keep all frames of a video get them in memory that can be swapped out."""
    originals = pictures(7)
    monkeypatch.setattr(Uploader, "MAX_PINNED_BYTES", 4 * originals[0].nbytes)
    uploader = Uploader(DEVICE)
    kept = [uploader.copy(image) for image in originals]
    assert len(uploader._copies) == 4
    kept[0] = kept[0][1:]
    assert len(uploader._copies) == 4, "a view keeps the memory"
    for copy, image in zip(kept[1:], originals[1:], strict=True):
        sent = uploader.send(copy, stays=True)
        sent.wait()
        assert np.array_equal(sent.take().cpu().numpy(), image)
    del kept, copy
    assert not len(uploader._copies)
    assert uploader.copy(originals[0]).base is not None
