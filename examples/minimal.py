"""The shortest complete program: runs a model on a video, and plots how much of it was executed.

    python examples/minimal.py VIDEO [--config-file CONFIG] [--target TAU] [--output executed.png]

VIDEO is a file, a folder of frames or an address. CONFIG is a config of Detectron2, such as
COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml; by default it is that of the demo, whose
weights know the drawn streets of `make data` only.
"""

import argparse

import matplotlib.pyplot as plt

from blockcopy_d2 import VideoPredictor
from blockcopy_d2.engine.acceleration import load_video_config


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", help="a file, a folder of frames or an address")
    parser.add_argument("--config-file", default="maskrcnn_blockcopy.yaml", help="see above")
    parser.add_argument("--target", type=float, default=0.15, metavar="TAU", help="share to run")
    parser.add_argument("--output", default="executed.png", help="the plot to write")
    args = parser.parse_args()

    # A config of the model zoo brings its trained weights along.
    predictor = VideoPredictor(load_video_config(args.config_file, target=args.target))

    executed, milliseconds = [], []
    for index, (_, outputs) in enumerate(predictor.stream(args.video)):
        executed.append(outputs.executed)
        milliseconds.append(1000 * sum(outputs.seconds.values()))
        found = len(outputs["instances"]) if "instances" in outputs else "-"
        print(f"frame {index}: {found} instances, {executed[-1]:.0%} of the blocks executed")

    figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(7, 4), layout="constrained")
    top.step(range(len(executed)), executed, where="mid")
    top.axhline(args.target, color="gray", linestyle="--", label=f"target {args.target}")
    top.set(ylabel="executed share", ylim=(0, 1.05))
    top.legend()
    bottom.step(range(len(milliseconds)), milliseconds, where="mid", color="tab:orange")
    bottom.set(xlabel="frame", ylabel="ms per frame")
    bottom.set_ylim(bottom=0)
    figure.savefig(args.output, dpi=120)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
