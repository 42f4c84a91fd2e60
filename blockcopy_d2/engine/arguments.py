"""Arguments that the command lines share, and the handling of their errors."""

import argparse
import contextlib
import math
from fractions import Fraction

from blockcopy_d2.data import FrameReadError, redact_words
from blockcopy_d2.data.torchcodec_video import DECODERS

from .hooks import ScoringError

__all__ = [
    "add_config_arguments",
    "add_decoder_argument",
    "add_live_arguments",
    "add_motion_argument",
    "count",
    "drawn_cell_size",
    "errors_end_the_program",
    "fraction",
    "points",
    "positive",
    "without_secrets",
]


def add_config_arguments(parser, *, default="maskrcnn_blockcopy.yaml", lazy=False):
    """
    Add ``--config-file`` and ``--opts``. The latter takes the rest of the command line.

    Args:
        parser (ArgumentParser):
        default (str): name of a config.
        lazy (bool): the command takes LazyConfigs, too.
    """
    kinds = "a file, a config of this project or of Detectron2's model zoo"
    opts = "override config keys, at the end of the command: --opts MODEL.BLOCKCOPY.TARGET 0.2"
    if lazy:
        kinds += ", yaml or LazyConfig"
        opts += (
            "; of a LazyConfig KEY=VALUE, with blockcopy.KEY=VALUE for the options of"
            " blockcopy_d2.accelerate: --opts train.init_checkpoint=model.pth blockcopy.target=0.2"
        )
    parser.add_argument(
        "--config-file", default=default, metavar="FILE", help=f"{kinds} (%(default)s)"
    )
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, metavar="KEY VALUE", help=opts
    )


def without_secrets(parser):
    """
    Args:
        parser (ArgumentParser): changed so that its errors show addresses without user, password
            and query.

    Returns:
        ArgumentParser: ``parser``.
    """
    end = parser.error
    parser.error = lambda message: end(redact_words(message))
    return parser


def add_decoder_argument(parser):
    """
    Add ``--decoder``.

    Args:
        parser (ArgumentParser):
    """
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default="auto",
        help="decoder of video files: PyAV, or torchcodec, on the GPU of the model if there is"
        " one (pip install 'blockcopy-d2[gpu-decode]'). auto: torchcodec if it is installed and"
        " the GPU decodes the file (%(default)s)",
    )


def add_live_arguments(parser):
    """
    Add ``--fps``, ``--reconnect`` and ``--metrics-port``.

    Args:
        parser (ArgumentParser):
    """
    parser.add_argument(
        "--fps",
        type=_rate,
        metavar="RATE",
        help="run at most so many frames per second of the video, or of what a camera sends",
    )
    parser.add_argument(
        "--reconnect",
        type=_patience,
        default=math.inf,
        metavar="SECONDS",
        help="try a camera or address that was lost again for so long (default: without an end;"
        " 0: not at all)",
    )
    parser.add_argument(
        "--metrics-port",
        type=_metrics_address,
        metavar="PORT",
        help="serve counts and delays to Prometheus at http://127.0.0.1:PORT/metrics; HOST:PORT for"
        " another address, 0.0.0.0 for all. Needs pip install 'blockcopy-d2[metrics]'",
    )


def add_motion_argument(parser):
    """
    Add ``--draw-motion``.

    Args:
        parser (ArgumentParser):
    """
    parser.add_argument(
        "--draw-motion",
        action="store_true",
        help="draw the motion of the picture since the last frame in colours; copied features move"
        " by it (MODEL.BLOCKCOPY.MOTION)",
    )


def drawn_cell_size(args, model):
    """
    Args:
        args (Namespace): with the argument of :func:`add_motion_argument`.
        model (BlockCopyVideoModel or None): None for a dense model.

    Returns:
        int or None: side of the cells to draw, in pixels of the network's input; None if motion is
        not drawn.

    Raises:
        ValueError: it should be drawn, but there is none.
    """
    if not args.draw_motion:
        return None
    if model is None:
        raise ValueError("--draw-motion has no motion to draw: leave --dense out.")
    if model.motion is None:
        raise ValueError(
            "--draw-motion has no motion to draw: choose an estimator with --opts"
            " MODEL.BLOCKCOPY.MOTION.NAME auto."
        )
    return model.motion.cell_size


def fraction(text):
    """float: within [0, 1]. Raises an error for argparse."""
    return _number(text, float, lambda value: 0 <= value <= 1, "within [0, 1]")


def points(text):
    """float: finite and at least 0. Raises an error for argparse."""
    return _number(text, float, lambda x: 0 <= x < math.inf, "a finite number of at least 0")


def count(text):
    """int: at least 0. Raises an error for argparse."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive(text):
    """int: at least 1. Raises an error for argparse."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def _rate(text):
    # As FFmpeg writes rates, too: 30000/1001.
    return float(_number(text, Fraction, lambda value: value > 0, "a finite number above 0"))


def _patience(text):
    return _number(text, float, lambda value: value >= 0, "a number of at least 0")


def _number(text, parse, fits, wanted):
    """Raises an error for argparse that says what is wanted, not the name of a function."""
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if fits(value := parse(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text} is not {wanted}")


def _metrics_address(text):
    """Arguments of :class:`StreamMetrics`."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (colon and not host):
        raise argparse.ArgumentTypeError(f"{text} is neither a port, 0 to 65535, nor HOST:PORT")
    # The brackets are those of an address of IPv6.
    return (int(port), host.strip("[]")) if host else (int(port),)


@contextlib.contextmanager
def errors_end_the_program():
    """
    A context in which errors that a user can fix end the program with one line instead of a
    traceback. Addresses in it appear without user, password and query.

    Raises:
        SystemExit: instead of OSError, ValueError, KeyError, ImportError, FrameReadError and
            ScoringError.
    """
    try:
        yield
    except (FrameReadError, ScoringError, ImportError, OSError, ValueError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise SystemExit(f"error: {redact_words(message)}") from error
