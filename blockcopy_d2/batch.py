"""
Runs a model with BlockCopy on any number of videos, and keeps the detections as data, a file per
video:

    python -m blockcopy_d2.batch --config-file maskrcnn_blockcopy.yaml \\
        --input 'videos/**/*.mp4' --output results

The results of videos/north/a.mp4 are in results/north/a.mp4.json, in COCO's result format with
masks as run lengths and the time of each frame; other formats: --format parquet, and ytvis with
--track. results/summary.json has frames per second, executed share, and errors.

The same command again goes on where the last one was ended: a file of results has its name only
when it is whole. A broken video is reported and left out, the exit code is then 1. Each video
starts with the same policy, so that its results depend on nothing but the video and the settings.
"""

import argparse
import functools
import hashlib
import json
import logging
import sys
import time

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from omegaconf import OmegaConf
from tqdm import tqdm

import blockcopy_d2
from blockcopy_d2.data import redact
from blockcopy_d2.data.addresses import is_address
from blockcopy_d2.data.torchcodec_video import import_torchcodec
from blockcopy_d2.engine.acceleration import load_video_config, metadata_of
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    add_decoder_argument,
    errors_end_the_program,
    fraction,
    positive,
    without_secrets,
)
from blockcopy_d2.engine.batch import VideoJob
from blockcopy_d2.engine.batch_folder import BatchFolder
from blockcopy_d2.engine.batch_ray import import_ray, run_with_ray
from blockcopy_d2.engine.batch_tasks import find_videos
from blockcopy_d2.engine.batch_workers import run_in_workers
from blockcopy_d2.engine.logs import set_up_logs
from blockcopy_d2.engine.outputs import weight_files
from blockcopy_d2.engine.predictor import VideoPredictor
from blockcopy_d2.engine.result_arguments import (
    add_region_arguments,
    add_track_argument,
    has_region,
)
from blockcopy_d2.engine.stopping import RunStopped, StopSignals
from blockcopy_d2.results import FORMATS, Categories, check_tracking

# Keys of configs that results do not depend on.
_IDLE_KEYS = ("OUTPUT_DIR", "MODEL.DEVICE")


def get_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, lazy=True)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="VIDEO",
        help="video files, folders of frames, addresses, and patterns of them in quotation marks,"
        " where ** stands for any folders",
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where results go; created if missing"
    )
    parser.add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="coco",
        help="coco: a JSON list of rows; parquet: a table; ytvis: a JSON list of tracks"
        " (%(default)s)",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=fraction,
        default=0.0,
        metavar="SCORE",
        help="minimum score of a row; by default all that the model gives, see"
        " MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    )
    parser.add_argument(
        "--target", type=fraction, metavar="TAU", help="fraction of blocks to execute"
    )
    add_track_argument(parser)
    add_region_arguments(parser)
    parser.add_argument(
        "--max-frames", type=positive, metavar="N", help="stop after that many frames of a video"
    )
    add_decoder_argument(parser)
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="name results by the paths of their videos from there (default: the part of a pattern"
        " before its first *, and the folder of a file)",
    )
    parser.add_argument(
        "--keep-learning",
        action="store_true",
        help="the policy goes on learning from video to video, instead of starting anew with each;"
        " results then depend on the order",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes, each with a model of its own; GPUs are dealt out in turn (default: 1; with"
        " --ray one per GPU, without GPUs one per machine)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto for the cluster of this machine, local for"
        " this machine alone. A video whose process or machine dies is run again by another. Needs"
        " pip install 'blockcopy-d2[ray]'",
    )
    parser.add_argument(
        "--share-policy",
        type=positive,
        metavar="N",
        help="with --ray and --keep-learning: after every N videos of a process its policy becomes"
        " the mean of those of all processes (default: each learns by itself)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the results that the folder has, also those of other settings",
    )
    return without_secrets(parser)


def main():
    """Runs the command line."""
    args = get_parser().parse_args()
    set_up_logs()
    with errors_end_the_program():
        FORMATS[args.format].check(tracks=args.track)
        if args.track:
            check_tracking()
        if args.decoder == "torchcodec":
            import_torchcodec()
        if args.ray is not None:
            import_ray()
        if args.share_policy and not (args.ray and args.keep_learning):
            raise ValueError("--share-policy needs --ray and --keep-learning.")
        tasks = find_videos(args.input, output=args.output, format=args.format, root=args.root)
        cfg = load_video_config(args.config_file, args.opts, target=args.target)
        folder = BatchFolder(args.output)
        with folder.open(settings_of(cfg, args), overwrite=args.overwrite):
            run = BatchRun(args, cfg, folder, tasks)
            try:
                run.run()
            finally:
                summary = run.summary()
                path = folder.write_summary(summary)
    _report(summary, path)
    if run.stopped is not None:
        raise SystemExit(run.stopped.exit_code)
    if summary["failures"] or summary["incomplete"]:
        raise SystemExit(1)


class BatchRun:
    """
    One run of a batch, from the videos that are left to its summary.

    Attributes:
        stopped (RunStopped or None): the signal that ended it early.
    """

    def __init__(self, args, cfg, folder, tasks):
        """
        Args:
            args (Namespace): arguments of the command line.
            cfg (CfgNode or DictConfig):
            folder (BatchFolder): open.
            tasks (list[VideoTask]): all of the batch.
        """
        self._args, self._cfg, self._folder, self._tasks = args, cfg, folder, tasks
        self._pending = folder.pending(tasks)
        self._frames, self._start, self._seconds = {}, None, 0.0
        self.stopped = None

    def run(self):
        """Run the remaining videos, until they are done or a signal comes."""
        if not self._pending:
            return
        done = len(self._tasks) - len(self._pending)
        with (
            tqdm(total=len(self._tasks), initial=done, unit="video") as self._videos,
            tqdm(unit="frame") as self._bar,
            StopSignals() as signals,
        ):
            try:
                self._run_pending()
            except KeyboardInterrupt:
                # Ray turns what a handler raises into an interrupt of its own.
                self.stopped = signals.received or RunStopped("SIGINT", 130)
            finally:
                if self._start is not None:
                    self._seconds = time.perf_counter() - self._start

    def _run_pending(self):
        options = {
            "metadata": metadata_of(self._cfg),
            "threshold": self._args.confidence_threshold,
            "track": self._args.track,
            "max_frames": self._args.max_frames,
            "keep_learning": self._args.keep_learning,
            "decoder": self._args.decoder,
        }
        args, region = self._args, None
        if has_region(args):
            region = {"area": args.area, "always": args.always, "never": args.never}
        build = functools.partial(build_job, self._cfg, self._folder, region, options)
        if self._args.ray is not None:
            run_with_ray(
                self._pending,
                build,
                self._folder,
                address=self._args.ray,
                workers=self._args.workers,
                share_policy=self._args.share_policy,
                on_ready=self._on_ready,
                on_frames=self._on_frames,
                on_record=self._on_record,
            )
            return
        workers = min(self._args.workers or 1, len(self._pending))
        if workers > 1:
            run_in_workers(
                self._pending,
                build,
                workers,
                on_ready=self._on_ready,
                on_frames=self._on_frames,
                on_record=self._on_record,
                write_record=self._folder.write_record,
            )
            return
        job = build(0)
        self._on_ready()
        for task in self._pending:
            self._on_record(task, job(task, functools.partial(self._on_frames, task)))

    def _on_ready(self):
        if self._start is None:
            self._start = time.perf_counter()

    def _on_frames(self, task, frames):
        self._bar.update(frames - self._frames.get(task, 0))
        self._frames[task] = frames

    def _on_record(self, task, record):
        if record["error"] is None:
            self._on_frames(task, record["frames"])
        else:
            self._videos.write(f"error: {_named(record)}", file=sys.stderr)
        self._videos.update()

    def summary(self):
        """
        Returns:
            dict: JSON values for all videos, those of earlier runs included.
        """
        pairs = [(task, self._folder.record(task)) for task in self._tasks]
        failures = [r for _, r in pairs if r is not None and r["error"] is not None]
        done = [
            r
            for task, r in pairs
            if r is not None and r["error"] is None and self._folder.has_results(task)
        ]
        frames, seconds = sum(self._frames.values()), self._seconds
        chosen = sum(max(0, r["frames"] - 1) for r in done)
        executed = sum(r["executed"] * (r["frames"] - 1) for r in done if r["frames"] > 1)
        return {
            "videos": len(self._tasks),
            "done": len(done),
            "failed": len(failures),
            "unfinished": len(pairs) - len(done) - len(failures),
            "frames": sum(r["frames"] for r in done),
            "rows": sum(r["rows"] for r in done),
            "executed": round(executed / chosen, 4) if chosen else None,
            "frames_of_this_run": frames,
            "seconds_of_this_run": round(seconds, 3),
            "frames_per_second": round(frames / seconds, 3) if frames else None,
            "stopped": None if self.stopped is None else self.stopped.reason,
            "failures": [{"video": r["video"], "error": r["error"]} for r in failures],
            "incomplete": [
                {"video": r["video"], "frames": r["incomplete"]} for r in done if r["incomplete"]
            ],
            "categories": Categories(metadata_of(self._cfg)).names,
            "version": blockcopy_d2.__version__,
            "results": [
                {
                    "video": r["video"],
                    "results": redact(r["results"]),
                    **{key: r[key] for key in ("frames", "rows", "seconds", "executed")},
                }
                for r in done
            ],
        }


def build_job(cfg, folder, region, options, number):
    """
    Args:
        cfg (CfgNode or DictConfig):
        folder (BatchFolder):
        region (dict or None): arguments of :meth:`VideoPredictor.set_region`.
        options (dict): arguments of :class:`VideoJob`.
        number (int): number of the process; GPUs are dealt out in turn.

    Returns:
        VideoJob:
    """
    gpus = torch.cuda.device_count()
    if gpus > 1:
        torch.cuda.set_device(number % gpus)
    predictor = VideoPredictor(cfg)
    if region is not None:
        predictor.set_region(**region)
    return VideoJob(predictor, folder, **options)


def settings_of(cfg, args):
    """
    Args:
        cfg (CfgNode or DictConfig):
        args (Namespace): arguments of the command line.

    Returns:
        dict: JSON values by key: all that the results of a video depend on.
    """
    if isinstance(cfg, CfgNode):
        config = yaml.safe_load(cfg.dump())
    else:
        config = OmegaConf.to_container(cfg)
    settings = {key: v for key, v in _flat(config).items() if key not in _IDLE_KEYS}
    settings["version"] = blockcopy_d2.__version__
    for path in filter(None, weight_files(cfg)):
        settings[f"content of {redact(path)}"] = _digest(path)
    names = ("format", "confidence_threshold", "track", "max_frames", "keep_learning", "decoder")
    names += ("area", "always", "never", "share_policy")
    settings |= {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return json.loads(json.dumps(settings, default=_name))


def _flat(config, prefix=""):
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digest(path):
    """str or None: signature of a local file; the content of an address is taken not to change."""
    if is_address(path) and not path.startswith("blockcopy://"):
        return None
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as f:
        while part := f.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _name(value):
    """str: name of a class or function of a LazyConfig, or of any other value that is not JSON."""
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else repr(value)


def _named(record):
    """str: why a video has no results, with its name."""
    named = record["video"] in record["error"]
    return record["error"] if named else f"{record['video']}: {record['error']}"


def _report(summary, path):
    logger = logging.getLogger("blockcopy_d2.batch")
    speed, executed = summary["frames_per_second"], summary["executed"]
    logger.info(
        "%d of %d videos done, %d frames, %d rows%s%s. Summary: %s",
        summary["done"],
        summary["videos"],
        summary["frames"],
        summary["rows"],
        "" if executed is None else f", {executed:.1%} of the blocks executed",
        "" if speed is None else f", {speed:.1f} frames per second in this run",
        redact(path),
    )
    for failure in summary["failures"]:
        logger.error("No results: %s", _named(failure))
    for video in summary["incomplete"]:
        logger.error("%s ends early, after %s. Is it truncated?", video["video"], video["frames"])
    if summary["stopped"]:
        logger.warning(
            "%s: %d videos are left; the same command goes on with them.",
            summary["stopped"],
            summary["unfinished"],
        )


if __name__ == "__main__":
    main()
