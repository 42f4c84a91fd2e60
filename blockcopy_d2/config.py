"""
Every config key of BlockCopy, and the switch that turns it on for any Detectron2 config.

A key is declared once, with its default and the values it takes; see :class:`Key`.
"""

import copy
from types import SimpleNamespace

from detectron2.config import CfgNode as CN

from .config_key import choice, flag, list_of, number, power_of_two, text, whole
from .networks import NETWORKS

_META_ARCHITECTURE = "BlockCopyVideoModel"
_BACKBONE = "BlockCopyBackbone"
_RPN_HEAD = "BlockCopyRPNHead"


def _model_keys():
    _C = SimpleNamespace()
    # The switch. enable_blockcopy() reads it once the config is complete
    _C.ENABLED = flag(False)

    # The wrapped parts: names in Detectron2's registries. enable_blockcopy() moves
    # MODEL.META_ARCHITECTURE, MODEL.BACKBONE.NAME and MODEL.RPN.HEAD_NAME here
    _C.BASE_META_ARCHITECTURE = text("")
    _C.BASE_BACKBONE = text("")
    _C.BASE_RPN_HEAD = text("")

    # Side of a block in pixels of the network's input
    _C.BLOCK_SIZE = power_of_two(
        128, least=8, most=4096, note=", such as 64, to align with the strides of the network"
    )
    # Backend that executes the blocks: "triton" (kernels for NVIDIA GPUs), "torch" (PyTorch's
    # operators, any device), or "auto", which takes Triton's on GPUs that they run on
    _C.BACKEND = choice("auto", "triton", "torch")
    # Run streams as CUDA graphs, a batch of them as one, with Triton's kernels. Has an effect on
    # GPUs, for architectures that docs/gpu.md lists. False: never
    _C.CUDA_GRAPH = flag(True)
    # tau of the paper: the fraction of blocks to execute
    _C.TARGET = number(0.3, most=1)
    # Turns outputs into the policy's input, and compares them: a name in TASK_REGISTRY
    # (InstanceTask, SemanticTask, ReleasedSemanticTask, PanopticTask, ProposalTask), or "auto", by
    # the model's structure
    _C.TASK = text("auto", allowed="the name of a task")
    # If more than this share of a frame has changed since the last one, it is another scene and
    # executes all blocks, unless MOTION explains the change. 0: never
    _C.SCENE_CUT = number(0.33, most=1, note=", a share of the picture")
    # Every block is executed at least once in this many frames. 0: no limit
    _C.REFRESH_EVERY = whole(0, least=0)
    # Share of the blocks above which a frame executes all of them, since a dense one is cheaper:
    # the break-even, which benchmarks.network reports. 1.0: never
    _C.DENSE_ABOVE = number(1.0, most=1, note=", a share of the blocks")

    # Motion of the picture since the last frame
    _C.MOTION = SimpleNamespace()
    # "none"; "DISFlow" (OpenCV, on the CPU); "BlockMatching" (any device, Triton's kernels on a
    # GPU); "CodecVectors" (exported by the decoder of a video); or "auto", which is BlockMatching
    # on a GPU and DISFlow on a CPU. A name in MOTION_REGISTRY. Models of accelerate(),
    # VideoPredictor, demo.py and the report use "auto" unless their config names one
    _C.MOTION.NAME = text("none", allowed="the name of an estimator of motion")
    # Side of a cell that moves as one, in pixels of the network's input
    _C.MOTION.CELL_SIZE = choice(8, 16, 32)
    # Feature maps that move in blocks that are not executed: "outputs", which leave the
    # block-sparse modules, or "all" that outlive a frame. "auto" takes the better one: "all" on a
    # GPU and for segmentation, "outputs" for detection on a CPU
    _C.MOTION.MAPS = choice("auto", "outputs", "all")
    # Maps inside the modules stay in place below this stride, at 2 the picture itself: only a pixel
    # or two of them is read around a block
    _C.MOTION.MIN_STRIDE = power_of_two(2, least=1, most=128)
    # Maps above this stride stay in place: their pixels are larger than most motion
    _C.MOTION.MAX_STRIDE = power_of_two(64, least=1, most=128)
    # Presets of DISFlow, from fast to slow
    _C.MOTION.DIS_PRESET = choice("ultrafast", "fast", "medium")

    # Streams whose features are kept; beyond it the least recently used one is dropped
    _C.MAX_STREAMS = whole(8, least=1)

    _C.POLICY = SimpleNamespace()
    # A name in POLICY_REGISTRY: LearnedPolicy, ExpectedGain, AllBlocks, NoBlocks, RandomBlocks,
    # FrameDifference, MovedDifference, EveryKthFrame
    _C.POLICY.NAME = text("LearnedPolicy", allowed="the name of a policy")
    # Checkpoint of a warmed policy and its learner (policy_final.pth). Empty: start from scratch
    _C.POLICY.WEIGHTS = text("")
    # Side of a block as the policy sees it, in its own pixels. Its resolution is this over
    # BLOCK_SIZE; blocks of 64 at 16 cost what blocks of 128 at 32 do
    _C.POLICY.PIXELS_PER_BLOCK = choice(32, 16, 8)
    # Inputs of LearnedPolicy: "frame", "previous_frame", "frame_state" (the pixels of each block
    # when it was last executed), "output" and "grid" (of the last frame). The default ones have
    # kernels of their own on a GPU
    _C.POLICY.INPUTS = list_of(
        ["frame", "frame_state", "output", "grid"],
        choice("frame", "previous_frame", "frame_state", "output", "grid"),
        least=1,
        distinct=True,
    )
    # Layers of LearnedPolicy's ResNet. 20.3 GMACs with 20 and 34.1 with 32, at 1024 x 2048 in clips
    # of 20; the paper's "ResNet-20" has the 34.1
    _C.POLICY.DEPTH = choice(8, 20, 32)
    # For LearnedPolicy, as in the authors' code: output and grid are shifted to [-0.5, 0.5]
    _C.POLICY.CENTER_INPUTS = flag(False)
    # How frames are brought to the policy's resolution: "mean" of pixels, or "nearest", a single
    # one, as in the authors' code
    _C.POLICY.RESIZE = choice("mean", "nearest")
    # Round the number of executed blocks up to a multiple of all / COUNT_STEPS, 16 in the authors'
    # code. Random blocks are added, and learned from as if drawn. 0: no rounding
    _C.POLICY.COUNT_STEPS = whole(0, least=0)
    # With several processes: learn one policy, from the mean gradient of all of them, instead of
    # one each
    _C.POLICY.SYNC = flag(False)
    # EveryKthFrame executes all blocks of the first frame, and of every PERIOD-th from frame PHASE
    # on
    _C.POLICY.PERIOD = whole(2, least=1)
    _C.POLICY.PHASE = whole(0, least=0)
    # MovedDifference weighs the difference of a block by 1 + AGE_WEIGHT x frames since it was
    # executed
    _C.POLICY.AGE_WEIGHT = number(0.05, most=100)
    # ExpectedGain: a frame in which more changes than in others may execute up to so many times
    # TARGET, which quiet frames have saved. 1: every frame executes the same number
    _C.POLICY.BURST = number(1.0, least=1, most=10)
    # Seed of the policy's own random generator (sampling of blocks)
    _C.POLICY.SEED = whole(0, least=0, most=2**63 - 1)

    _C.LEARNER = SimpleNamespace()
    # Learn online from the task network's own output: LearnedPolicy by REINFORCE, ExpectedGain from
    # shares of the gain that came with a change of the picture
    _C.LEARNER.ENABLED = flag(True)
    # Learning rate and weight decay of RMSprop
    _C.LEARNER.LR = number(1e-4, most=1)
    _C.LEARNER.WEIGHT_DECAY = number(1e-3, most=1)
    # Learning rate of ExpectedGain, which has a few weights
    _C.LEARNER.GAIN_LR = number(0.01, most=1)
    # Its weight decay, which holds the initial weights: those fit any model
    _C.LEARNER.GAIN_DECAY = number(0.3, most=1)
    # Frames from one update to the next
    _C.LEARNER.UPDATE_EVERY = whole(4, least=1)
    # Frames by which an update is delayed, fewer than the above. CUDA graphs compute it beside
    # these frames
    _C.LEARNER.DELAY = whole(0, least=0)
    # gamma of eq. 8
    _C.LEARNER.COST_WEIGHT = number(5.0, most=1e6)
    # mu of eq. 11
    _C.LEARNER.COST_MOMENTUM = number(0.9, most=1)
    # As in the authors' code: M starts at 1 and includes the first frames of videos, which execute
    # all blocks under any policy
    _C.LEARNER.COUNT_FIRST_FRAMES = flag(False)
    # Cost term and reduction of the loss: "paper" (eq. 7 and 12) or "code" (the authors' release)
    _C.LEARNER.COST_FORM = choice("paper", "code")

    # Networks may have keys of their own, in blockcopy_d2/networks/<network>/config.py
    for network in NETWORKS.values():
        vars(_C).update(network.KEYS)
    return _C


def _clip_keys():
    _C = SimpleNamespace()
    # Frames per clip, counted back from the labelled one where there is one
    _C.NUM_FRAMES = whole(20, least=1)
    # Clips to run, from the start of the data set. 0: all of them
    _C.NUM_CLIPS = whole(0, least=0)
    return _C


def _test_keys():
    _C = SimpleNamespace()
    # Models run beside BlockCopy on the same frames, interleaved frame by frame:
    # "stock" (the base config's own model, untouched) and "dense" (this engine, all blocks).
    # The share of information gain needs "dense"
    _C.COMPARE = list_of([], choice("stock", "dense"))
    # Write the results of a Cityscapes data set as its benchmark takes them, zipped, beside scoring
    # them. On the test split, which cannot be scored, this is always done
    _C.SUBMISSION = flag(False)
    # Miss rates of CityPersons. "HO" is "Heavy" without the persons of whom less than 0.2 can be
    # seen, as MGAN's authors and Pedestron score it
    _C.MISS_RATES = list_of(
        ["Reasonable", "Bare", "Partial", "Heavy"],
        choice("Reasonable", "Bare", "Partial", "Heavy", "HO"),
        least=1,
        distinct=True,
    )
    # For miss rates of CityPersons, boxes end on their last pixel, one before ours, as in
    # Pedestron's export of MGAN
    _C.SCORE_TO_LAST_PIXEL = flag(False)
    # Write the detections of each clip to OUTPUT_DIR/results: "coco" (COCO's result format),
    # "parquet" or "ytvis", see docs/batch.md. "": nothing
    _C.RESULTS = choice("", "coco", "parquet", "ytvis")
    # Give objects in these files ids that last from frame to frame; "ytvis" needs them
    _C.TRACK = flag(False)
    # Clips drawn to overlay.mp4, from the start. 0: no video
    _C.OVERLAY_CLIPS = whole(0, least=0)
    # Frames per second of overlay.mp4
    _C.OVERLAY_FPS = whole(17, least=1, most=1000)
    # Detections below this score are not drawn
    _C.OVERLAY_THRESHOLD = number(0.5, most=1)
    # Draw the motion since the last frame, too, there and in TensorBoard's pictures
    _C.OVERLAY_MOTION = flag(False)
    return _C


def _amp_keys():
    _C = SimpleNamespace()
    # The counterpart of SOLVER.AMP: run the task network in fp16 on CUDA, in bf16 on CPUs that
    # have AMX or AVX512-BF16, in fp32 on others. Read where BlockCopy is enabled
    _C.ENABLED = flag(False)
    return _C


def _flatten(prefix, keys):
    for name, key in vars(keys).items():
        if isinstance(key, SimpleNamespace):
            yield from _flatten(f"{prefix}.{name}", key)
        else:
            yield f"{prefix}.{name}", key


# dict[str, Key]: every key by its full name.
KEYS = {
    **dict(_flatten("MODEL.BLOCKCOPY", _model_keys())),
    **dict(_flatten("INPUT.CLIP", _clip_keys())),
    **dict(_flatten("TEST.BLOCKCOPY", _test_keys())),
    **dict(_flatten("TEST.AMP", _amp_keys())),
}


def add_blockcopy_config(cfg: CN) -> None:
    """
    Add the config keys of BlockCopy to ``cfg``, all inert: a config that never mentions
    BlockCopy builds and trains exactly what it did before. Safe to call twice; keys already
    there keep their values.

    Args:
        cfg (CfgNode): a Detectron2 config, changed in place.
    """
    for name, key in KEYS.items():
        node, leaf = cfg, name.rsplit(".", 1)[-1]
        for part in name.split(".")[:-1]:
            node = node.setdefault(part, CN())
        if leaf not in node:
            node[leaf] = copy.deepcopy(key.default)


def enable_blockcopy(cfg: CN) -> None:
    """
    Make, where ``MODEL.BLOCKCOPY.ENABLED`` is set, Detectron2's ``build_model`` build the
    block-sparse video model around the parts that the config names: the meta-architecture, the
    backbone and the RPN head move to ``MODEL.BLOCKCOPY.BASE_*``. Does nothing when the switch is
    off or when it has been called before.

    Args:
        cfg (CfgNode): a complete, unfrozen config, changed in place.
    """
    options = cfg.MODEL.BLOCKCOPY
    if not options.ENABLED or cfg.MODEL.META_ARCHITECTURE == _META_ARCHITECTURE:
        return
    options.BASE_META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
    options.BASE_BACKBONE = cfg.MODEL.BACKBONE.NAME
    options.BASE_RPN_HEAD = cfg.MODEL.RPN.HEAD_NAME
    cfg.MODEL.META_ARCHITECTURE = _META_ARCHITECTURE
    cfg.MODEL.BACKBONE.NAME = _BACKBONE
    cfg.MODEL.RPN.HEAD_NAME = _RPN_HEAD


def base_config(cfg: CN) -> CN:
    """
    Args:
        cfg (CfgNode): with the keys of BlockCopy.

    Returns:
        CfgNode: a copy of ``cfg`` as it was before :func:`enable_blockcopy`, switched off. It
        builds Detectron2's own model, without code of BlockCopy.
    """
    cfg = cfg.clone()
    cfg.defrost()
    options = cfg.MODEL.BLOCKCOPY
    if cfg.MODEL.META_ARCHITECTURE == _META_ARCHITECTURE:
        cfg.MODEL.META_ARCHITECTURE = options.BASE_META_ARCHITECTURE
        cfg.MODEL.BACKBONE.NAME = options.BASE_BACKBONE
        cfg.MODEL.RPN.HEAD_NAME = options.BASE_RPN_HEAD
    options.BASE_META_ARCHITECTURE = options.BASE_BACKBONE = options.BASE_RPN_HEAD = ""
    options.ENABLED = False
    return cfg


def check_blockcopy_config(cfg: CN) -> None:
    """
    Check the value of every key of BlockCopy.

    Args:
        cfg (CfgNode): with the keys of BlockCopy.

    Raises:
        ValueError: names the key, its value and what is allowed.
        KeyError: names a key that ``cfg`` lacks.
    """
    for name, key in KEYS.items():
        key.check(name, _value_of(cfg, name))


def check_arguments(group="MODEL.BLOCKCOPY", **values):
    """
    Check arguments of classes that can be built without a config, as the keys they stand for.

    Args:
        group (str): the full name of the keys' group.
        values: by the names of the keys, in small letters.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    for name, value in values.items():
        KEYS[f"{group}.{name.upper()}"].check(name, value)


def _value_of(cfg, name):
    node = cfg
    for part in name.split("."):
        if not isinstance(node, CN) or part not in node:
            raise KeyError(f"The config has no key {name}; call add_blockcopy_config(cfg) first.")
        node = node[part]
    return node
