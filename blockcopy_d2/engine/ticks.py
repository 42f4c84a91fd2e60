"""
Runs several feeds together, a frame of each at a time.

Shape shorthand: N feeds.
"""

from blockcopy_d2.data import SentPicture, close_all, next_of_each, read_ahead
from blockcopy_d2.data.read_ahead import ENDED

from .stream_counts import StreamCounts

__all__ = ["run_feeds"]


def run_feeds(feeds, run, reset):
    """
    Args:
        feeds (iterable[FrameFeed]): N feeds. Each is read on a thread of its own, and closed at the
            end.
        run (callable): called with the N pictures and the N FrameVectors of a tick, with None where
            there are none; returns the FrameResult of each picture.
        reset (callable): called with the number of a feed whose camera was lost and found again,
            before its next frame runs.

    Yields:
        list[tuple[ndarray or Tensor, FrameResult] or None]: the frame of every feed and its result;
        None where a feed has ended, or where a live one has no new frame.
    """
    readers = []
    try:
        for feed in feeds:
            readers.append(read_ahead(feed, latest=feed.live))
        counts = [StreamCounts() for _ in readers]
        while True:
            frames = next_of_each(readers)
            if all(frame is ENDED for frame in frames):
                return
            frames = [None if frame is ENDED else frame for frame in frames]
            present = [slot for slot, frame in enumerate(frames) if frame is not None]
            if not present:
                continue
            for slot in present:
                counts[slot].advance(frames[slot], readers[slot].dropped)
                if counts[slot].reconnects:
                    reset(slot)
            pictures = [None if frame is None else frame.picture for frame in frames]
            # Vectors lead to the frame before, which must not have been dropped.
            vectors = [
                None if frame is None or count.dropped else frame.vectors
                for frame, count in zip(frames, counts, strict=True)
            ]
            results = run(pictures, vectors)
            for slot in present:
                if isinstance(pictures[slot], SentPicture):
                    # The caller may draw on the image.
                    pictures[slot].wait()
                counts[slot].stamp(results[slot], frames[slot])
            del pictures, vectors
            yield [
                None if frame is None else (frame.image, result)
                for frame, result in zip(frames, results, strict=True)
            ]
            # Free the memory of this tick before the next one is read.
            del frames, results
    finally:
        close_all(readers)
