#!/usr/bin/env python3
"""
Runs a Detectron2 model with BlockCopy on a video of any length, and draws its detections:

    python demo.py --config-file maskrcnn_blockcopy.yaml --video-input in.mp4 --output out.mp4
    python demo.py --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml --webcam

A config named as in Detectron2's model zoo, yaml or LazyConfig, comes with its trained model. The
flags are those of Detectron2's own demo, and a few more. The policy learns on the video itself.
Ctrl-C ends the run early and leaves a playable video. The output gets its name once it is complete;
no input is ever overwritten.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import contextlib
import itertools
import signal
import sys
import time

import torch
from detectron2.config import CfgNode
from omegaconf import OmegaConf
from tabulate import tabulate
from tqdm import tqdm

from blockcopy_d2.config import base_config
from blockcopy_d2.data import (
    FrameFeed,
    FrameReadError,
    VideoFrames,
    read_ahead,
)
from blockcopy_d2.engine.acceleration import (
    device_of,
    load_video_config,
    metadata_of,
)
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    add_decoder_argument,
    add_live_arguments,
    add_motion_argument,
    drawn_cell_size,
    errors_end_the_program,
    fraction,
    positive,
    without_secrets,
)
from blockcopy_d2.engine.dense_predictor import dense_predictor
from blockcopy_d2.engine.logs import set_up_logs
from blockcopy_d2.engine.metrics import StreamMetrics
from blockcopy_d2.engine.outputs import (
    check_output,
    refuse_overwriting,
    weight_files,
)
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.engine.region import Region
from blockcopy_d2.engine.result_arguments import (
    add_region_arguments,
    add_track_argument,
    check_results,
    has_region,
    open_results,
)
from blockcopy_d2.engine.still_pictures import picture_targets, run_pictures, shown_instances
from blockcopy_d2.engine.stream_counts import StreamCounts
from blockcopy_d2.evaluation import InstanceAgreement
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.results import (
    ResultsWriteError,
)
from blockcopy_d2.visualization import (
    VideoWriteError,
    VideoWriter,
    check_video_path,
    draw_frame,
    pixel_classes,
)

CAMERA = "/dev/video0"


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser, lazy=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--webcam", action="store_true", help="take frames from the first camera")
    source.add_argument(
        "--video-input", metavar="FILE", help="a video file, an address, or a folder of frames"
    )
    source.add_argument(
        "--input", nargs="+", metavar="FILE", help="single pictures, each run for itself and dense"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the video to write (.mp4, .mkv); with --input a folder, or a file for one picture."
        " Without it nothing is drawn",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=fraction,
        default=0.5,
        metavar="SCORE",
        help="minimum score of the instances to show, and to write with --results (%(default)s)",
    )
    parser.add_argument(
        "--target", type=fraction, metavar="TAU", help="fraction of blocks to execute"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dense", action="store_true", help="BlockCopy off: Detectron2 as it is")
    mode.add_argument(
        "--compare-dense",
        action="store_true",
        help="run the dense model on the same frames, too, and report times and agreement",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="write detections as data: COCO's result format (.json), a table (.parquet), or"
        " with --track tracks (.ytvis.json); see docs/batch.md",
    )
    add_track_argument(parser)
    add_region_arguments(parser)
    add_motion_argument(parser)
    parser.add_argument(
        "--max-frames", type=positive, metavar="N", help="stop after that many frames"
    )
    add_decoder_argument(parser)
    add_live_arguments(parser)
    return without_secrets(parser)


class Clock:
    """Calls a predictor and times it, preprocessing, learning and reading its output included."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.seconds = 0.0
        self._calls = 0
        self._total = 0.0

    def __call__(self, *frame):
        start = time.perf_counter()
        result = self.predictor(*frame)
        read_whole(result)  # Part of a frame.
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - start
        # The first call of a network warms up caches and traces it.
        self._total += self.seconds if self._calls else 0.0
        self._calls += 1
        return result

    @property
    def milliseconds(self):
        """Per frame, averaged over all frames after the first."""
        return 1000 * self._total / max(1, self._calls - 1)


def check_comparable(cfg):
    """Raises ValueError for a model without the instances that --compare-dense compares."""
    if isinstance(cfg, CfgNode):
        name = base_config(cfg).MODEL.META_ARCHITECTURE
    else:
        target = OmegaConf.select(cfg, "model._target_")
        name = getattr(target, "__name__", str(target)).rsplit(".", 1)[-1]
    if name in ("SemanticSegmentor", "ProposalNetwork"):
        raise ValueError(f"--compare-dense compares instances; a {name} finds none.")


def _on_host(image):
    """ndarray: a picture, copied where a GPU has decoded it."""
    return image.cpu().numpy() if isinstance(image, torch.Tensor) else image


class VideoRun:
    """One video through BlockCopy, through the dense model, or through both."""

    def __init__(self, args, cfg):
        """
        Args:
            args (Namespace): arguments of the command line.
            cfg (CfgNode or DictConfig):

        Raises:
            OSError, ValueError: an input, output or weights that cannot be used.
        """
        if args.compare_dense:
            check_comparable(cfg)
        if args.dense and args.metrics_port:
            raise ValueError("--metrics-port serves the counts of BlockCopy: leave --dense out.")
        self.video = VideoFrames(
            CAMERA if args.webcam else args.video_input,
            decoder=args.decoder,
            device="cpu" if args.dense else device_of(cfg),
        )
        self.fps, self.reconnect = args.fps, args.reconnect
        self.max_frames = args.max_frames
        self.threshold = args.confidence_threshold
        self.metadata = metadata_of(cfg)
        self.blockcopy = None if args.dense else Clock(VideoPredictor(cfg))
        if has_region(args):
            if args.dense:
                raise ValueError("--area, --always and --never work on blocks: leave --dense out.")
            region = {"area": args.area, "always": args.always, "never": args.never}
            Region(**region).check((self.video.height, self.video.width))
            self.blockcopy.predictor.set_region(**region)
        self.cell_size = drawn_cell_size(args, self.blockcopy and self.blockcopy.predictor.model)
        self.dense = self.agreement = None
        if args.dense or args.compare_dense:
            self.dense = Clock(dense_predictor(cfg))
        if self.blockcopy and self.dense:
            self.agreement = InstanceAgreement(score_threshold=self.threshold)
        self.frames = self.dropped = 0
        self._executed = 0.0
        self._counts, self._metrics = StreamCounts(), None

    def run(self, writer, metrics=None, results=None):
        """
        Run the frames until the video ends, breaks or is interrupted.

        Args:
            writer (VideoWriter or None): writes the drawn frames.
            metrics (StreamMetrics or None): where to count them.
            results (VideoResults or None): writes the detections.

        Returns:
            FrameReadError or None: the error that ended the video.
        """
        live, limit = self.video.live, self.max_frames
        known = [n for n in (self.video.num_frames, limit) if n]
        # The reader's limit, too: it must not wait for frames that are not needed. For a live
        # source it does not know which ones are taken.
        wanted = self.blockcopy is not None and self.blockcopy.predictor.reads_vectors
        feed = FrameFeed(self.video, vectors=wanted, fps=self.fps, reconnect=self.reconnect)
        frames = feed if live else itertools.islice(feed, limit)
        self._metrics = metrics
        if metrics:
            metrics.watch(self.video.name, feed)
        with (
            contextlib.closing(read_ahead(frames, latest=live)) as decoded,
            tqdm(
                itertools.islice(decoded, limit), total=min(known, default=None), unit="frame"
            ) as progress,
        ):
            try:
                for frame in progress:
                    self._counts.advance(frame, decoded.dropped)
                    self.dropped = decoded.dropped
                    output, draw = self._step(frame)
                    if results:
                        captured = frame.captured if live else None
                        results.add(output, frame.seconds, captured)
                    if writer:
                        writer.write(draw(), frame.seconds)
                    progress.set_postfix_str(self._postfix(), refresh=False)
            except KeyboardInterrupt:
                progress.write("Interrupted.", file=sys.stderr)
            except FrameReadError as error:
                return error

    def _postfix(self):
        parts = [f"executed {self.executed:.0%}"] if self.blockcopy else []
        parts += [f"{self.dropped} dropped"] if self.dropped else []
        return ", ".join(parts)

    def _step(self, frame):
        """Runs one frame; returns its output, and a function that draws it."""
        image = frame.image
        expected = self.dense(_on_host(image)) if self.dense else None
        if self.blockcopy is None:
            self.frames += 1
            seconds = self.dense.seconds
            return expected, lambda: self._draw(image, expected, seconds, "dense")
        if self._counts.reconnects:
            # The camera was lost: nothing is known of that time.
            self.blockcopy.predictor.reset()
        # Vectors lead to the frame before, which must not have been dropped.
        result = self.blockcopy(image, None if self._counts.dropped else frame.vectors)
        self._counts.stamp(result, frame)
        if self._metrics:
            self._metrics.observe(self.video.name, result)
        executed = result.grid.fraction
        # A first frame executes all blocks with any policy.
        self._executed += executed if self.frames else 0.0
        self.frames += 1
        if self.agreement:
            self.agreement.process([expected], [result.output])
        return result.output, lambda: self._draw(
            image,
            result.output,
            self.blockcopy.seconds,
            f"executed {executed:.0%}",
            active=result.grid.active[0].cpu(),
            block_size=result.grid.block_size,
            scale=result.scale,
            region=result.region,
            **self._motion_of(result),
        )

    def _motion_of(self, result):
        """dict: arguments of ``draw_frame`` for the motion, if it is drawn."""
        if self.cell_size is None or result.field is None:
            return {}
        return {"field": result.field[0].cpu(), "cell_size": self.cell_size}

    def _draw(self, image, output, seconds, what, **blocks):
        return draw_frame(
            _on_host(image),
            shown_instances(output, self.threshold),
            metadata=self.metadata,
            classes=pixel_classes(output),
            caption=(f"frame {self.frames - 1}", what, f"{1000 * seconds:.0f} ms"),
            **blocks,
        )

    @property
    def executed(self):
        """float: executed share of the blocks of all frames after the first."""
        return self._executed / max(1, self.frames - 1)

    def report(self):
        """
        Returns:
            str: a table of the models that ran.
        """
        table = {"": [], "executed": [], "ms per frame": []}
        if self.dense:
            table[""].append("dense")
            table["executed"].append("100.0%")
            table["ms per frame"].append(f"{self.dense.milliseconds:.1f}")
        if self.blockcopy:
            table[""].append("BlockCopy")
            table["executed"].append(f"{self.executed:.1%}")
            table["ms per frame"].append(f"{self.blockcopy.milliseconds:.1f}")
        if self.agreement:
            ratio = self.dense.milliseconds / self.blockcopy.milliseconds
            table["times faster"] = ["1.00", f"{ratio:.2f}"]
            for name, value in self.agreement.evaluate()["agreement"].items():
                table[f"{name} to dense"] = ["", f"{value:.1f}"]
        return tabulate(table, headers="keys", disable_numparse=True, stralign="right")


def main():
    args = get_parser().parse_args()
    set_up_logs()
    with errors_end_the_program():
        targets = picture_targets(args) if args.input else {}
        if args.output and not args.input:
            check_video_path(args.output)
            check_output(args.output)
        check_results(args)
        outputs = [*targets.values(), *filter(None, (args.output, args.results))]
        if not args.input:
            for output in outputs:
                refuse_overwriting(output, [CAMERA if args.webcam else args.video_input])
        cfg = load_video_config(
            args.config_file, args.opts, target=args.target, enabled=not args.dense
        )
        for output in targets.values() or outputs:
            refuse_overwriting(output, [args.config_file, *weight_files(cfg)])
        if args.input:
            return run_pictures(dense_predictor(cfg), targets, args.confidence_threshold)
        job = VideoRun(args, cfg)
        metrics = StreamMetrics(*args.metrics_port) if args.metrics_port else None
        writer = None
        if args.output:
            video = job.video
            fps = min(video.fps, args.fps or video.fps)
            writer = VideoWriter(args.output, fps, format=video.video_format)
    try:
        with (
            metrics or contextlib.nullcontext(),
            writer or contextlib.nullcontext(),
            open_results(args, job.video.fps, job.metadata) as results,
        ):
            broken = job.run(writer, metrics, results)
    except (ResultsWriteError, VideoWriteError) as error:
        raise SystemExit(f"error: {error}") from error
    if job.frames:
        dropped = f" and {job.dropped} dropped" if job.dropped else ""
        print(f"\n{job.video.name}: {job.frames} frames{dropped}; means over all but the first\n")
        print(job.report())
    if writer and writer.frames:
        print(f"\nWrote {writer.frames} frames to {args.output}")
    if results:
        print(f"\nWrote {results.rows} rows to {args.results}")
    if broken:
        raise SystemExit(f"error: {broken}")


if __name__ == "__main__":
    # SIGTERM, which ends jobs that take too long, should leave a playable video, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
