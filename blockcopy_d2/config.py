"""Every config key of BlockCopy, and the switch that turns it on for any Detectron2 config."""

from detectron2.config import CfgNode as CN

_META_ARCHITECTURE = "BlockCopyVideoModel"
_BACKBONE = "BlockCopyBackbone"
_RPN_HEAD = "BlockCopyRPNHead"


def add_blockcopy_config(cfg):
    """
    Add the config keys of BlockCopy to ``cfg``, all inert: a config that never mentions
    BlockCopy builds and trains exactly what it did before. Safe to call twice; keys already
    there keep their values.

    Args:
        cfg (CfgNode): a Detectron2 config, changed in place.
    """
    cfg.MODEL.BLOCKCOPY = cfg.MODEL.get("BLOCKCOPY", CN())
    cfg.INPUT.CLIP = cfg.INPUT.get("CLIP", CN())
    cfg.TEST.BLOCKCOPY = cfg.TEST.get("BLOCKCOPY", CN())
    cfg.TEST.AMP = cfg.TEST.get("AMP", CN())
    _add_missing(cfg.MODEL.BLOCKCOPY, _model_defaults())
    _add_missing(cfg.INPUT.CLIP, _clip_defaults())
    _add_missing(cfg.TEST.BLOCKCOPY, _test_defaults())
    _add_missing(cfg.TEST.AMP, _amp_defaults())


def _model_defaults():
    _C = CN()
    # The switch. enable_blockcopy() reads it once the config is complete
    _C.ENABLED = False

    # What BlockCopy wraps: names in Detectron2's registries. enable_blockcopy() moves
    # MODEL.META_ARCHITECTURE, MODEL.BACKBONE.NAME and MODEL.RPN.HEAD_NAME here
    _C.BASE_META_ARCHITECTURE = ""
    _C.BASE_BACKBONE = ""
    _C.BASE_RPN_HEAD = ""

    # Side of a block in pixels of the network's input, a power of two
    _C.BLOCK_SIZE = 128
    # What executes the blocks: "triton" (kernels for NVIDIA GPUs), "torch" (PyTorch's operators,
    # any device), or "auto", which takes Triton's on GPUs that they run on
    _C.BACKEND = "auto"
    # Run single streams of a Faster or Mask R-CNN, a SemanticSegmentor or CSP as CUDA graphs, with
    # Triton's kernels. Has no effect on other networks, batches of streams and CPUs. False: never
    _C.CUDA_GRAPH = True
    # tau of the paper: the wished fraction of executed blocks, in [0, 1]
    _C.TARGET = 0.3
    # A frame of which more than this share has changed since the last one is another scene and
    # executes all blocks. 0: never
    _C.SCENE_CUT = 0.33
    # Every block is executed at least once in so many frames. 0: no limit
    _C.REFRESH_EVERY = 0
    # Share of the blocks above which a frame executes all of them, since a dense one is cheaper:
    # the break-even, which benchmarks.network reports. 1.0: never
    _C.DENSE_ABOVE = 1.0
    # Streams whose features are kept; beyond it the least recently used one is dropped
    _C.MAX_STREAMS = 8

    _C.POLICY = CN()
    # A name in POLICY_REGISTRY: LearnedPolicy, AllBlocks, NoBlocks, RandomBlocks,
    # FrameDifference, EveryKthFrame
    _C.POLICY.NAME = "LearnedPolicy"
    # Checkpoint of a warmed policy and its learner (policy_final.pth). Empty: start from scratch
    _C.POLICY.WEIGHTS = ""
    # Side of a block as the policy sees it, in its own pixels: 32, 16 or 8. Its resolution is
    # this over BLOCK_SIZE; blocks of 64 at 16 cost what blocks of 128 at 32 do
    _C.POLICY.PIXELS_PER_BLOCK = 32
    # With several processes: learn one policy, from the mean gradient of all of them, instead of
    # one each
    _C.POLICY.SYNC = False
    # EveryKthFrame executes all blocks of every PERIOD-th frame
    _C.POLICY.PERIOD = 2
    # Seed of the policy's own random generator (sampling of blocks)
    _C.POLICY.SEED = 0

    _C.LEARNER = CN()
    # Learn online, by REINFORCE, from the task network's own output
    _C.LEARNER.ENABLED = True
    # RMSprop
    _C.LEARNER.LR = 1e-4
    _C.LEARNER.WEIGHT_DECAY = 1e-3
    # One update every so many frames
    _C.LEARNER.UPDATE_EVERY = 4
    # gamma of eq. 8
    _C.LEARNER.COST_WEIGHT = 5.0
    # mu of eq. 11
    _C.LEARNER.COST_MOMENTUM = 0.9
    # Cost term and reduction of the loss: "paper" (eq. 7 and 12) or "code" (the authors' release)
    _C.LEARNER.COST_FORM = "paper"

    # The pedestrian detector META_ARCHITECTURE "CSP"
    _C.CSP = CN()
    # Channels of each upsampled feature map, and of each branch of the head
    _C.CSP.NECK_CHANNELS = 256
    _C.CSP.HEAD_CHANNELS = 256
    # Width / height of every box
    _C.CSP.ASPECT_RATIO = 0.41
    # Detections: the pixels of highest score, those above the threshold, NMS by IoU
    _C.CSP.TOPK_CANDIDATES_TEST = 1000
    _C.CSP.SCORE_THRESH_TEST = 0.1
    _C.CSP.NMS_THRESH_TEST = 0.5
    # As in the paper of CSP
    _C.CSP.CENTER_LOSS_WEIGHT = 0.01
    _C.CSP.HEIGHT_LOSS_WEIGHT = 1.0
    _C.CSP.OFFSET_LOSS_WEIGHT = 0.1

    # The backbone build_vgg16_backbone; its first BACKBONE.FREEZE_AT stages are not trained
    _C.VGG = CN()
    # Channels of its five stages
    _C.VGG.STAGE_CHANNELS = [64, 128, 256, 512, 512]
    # Normalization after each convolution. VGG-16 has none; trained from scratch it needs "BN"
    _C.VGG.NORM = ""

    # The pedestrian detector MGAN (ROI_HEADS.NAME "MGANROIHeads")
    _C.MGAN = CN()
    # Weight of the loss that learns attention from what is visible of each pedestrian
    _C.MGAN.MASK_LOSS_WEIGHT = 0.5
    return _C


def _clip_defaults():
    _C = CN()
    # Frames per clip, counted back from the labelled one where there is one
    _C.NUM_FRAMES = 20
    # Clips to run, from the start of the data set. 0: all of them
    _C.NUM_CLIPS = 0
    return _C


def _test_defaults():
    _C = CN()
    # Models run beside BlockCopy on the same frames, interleaved frame by frame:
    # "stock" (the base config's own model, untouched) and "dense" (this engine, all blocks).
    # The share of information gain needs "dense"
    _C.COMPARE = []
    # Write the results of a Cityscapes data set as its benchmark takes them, zipped, beside scoring
    # them. On the test split, which cannot be scored, this is always done
    _C.SUBMISSION = False
    # Clips drawn to overlay.mp4, from the start. 0: no video
    _C.OVERLAY_CLIPS = 0
    # Frames per second of overlay.mp4
    _C.OVERLAY_FPS = 17
    # Detections below this score are not drawn
    _C.OVERLAY_THRESHOLD = 0.5
    return _C


def _amp_defaults():
    _C = CN()
    # The counterpart of SOLVER.AMP: run the task network in fp16 on CUDA, in bf16 on CPUs that
    # have AMX or AVX512-BF16, in fp32 on others. Read where BlockCopy is enabled
    _C.ENABLED = False
    return _C


def _add_missing(node, defaults):
    for key, value in defaults.items():
        if key not in node:
            node[key] = value
        elif isinstance(value, CN):
            _add_missing(node[key], value)


def enable_blockcopy(cfg):
    """
    Where ``MODEL.BLOCKCOPY.ENABLED`` is set, make Detectron2's ``build_model`` build the
    block-sparse video model around what the config names: the meta-architecture, the backbone
    and the RPN head move to ``MODEL.BLOCKCOPY.BASE_*``. Does nothing when the switch is off or
    when it has been called before.

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


def base_config(cfg):
    """
    Returns:
        CfgNode: a copy of ``cfg`` as it was before :func:`enable_blockcopy`, switched off:
        what it builds is Detectron2's own, with no code of BlockCopy in it.
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


def check_blockcopy_config(cfg):
    """
    Check the values that a schema cannot.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    options = cfg.MODEL.BLOCKCOPY
    _require("MODEL.BLOCKCOPY.TARGET", options.TARGET, 0 <= options.TARGET <= 1, "within [0, 1]")
    _require(
        "MODEL.BLOCKCOPY.BLOCK_SIZE",
        options.BLOCK_SIZE,
        options.BLOCK_SIZE > 0 and options.BLOCK_SIZE & (options.BLOCK_SIZE - 1) == 0,
        "a power of two, such as 64 or 128, to align with the strides of the network",
    )
    _require(
        "MODEL.BLOCKCOPY.MAX_STREAMS", options.MAX_STREAMS, options.MAX_STREAMS >= 1, "at least 1"
    )
    _require(
        "MODEL.BLOCKCOPY.SCENE_CUT",
        options.SCENE_CUT,
        0 <= options.SCENE_CUT <= 1,
        "a share of the picture, within [0, 1]",
    )
    _require(
        "MODEL.BLOCKCOPY.REFRESH_EVERY",
        options.REFRESH_EVERY,
        options.REFRESH_EVERY >= 0,
        "at least 1, or 0 for no limit",
    )
    _require(
        "MODEL.BLOCKCOPY.DENSE_ABOVE",
        options.DENSE_ABOVE,
        0 <= options.DENSE_ABOVE <= 1,
        "a share of the blocks, within [0, 1]",
    )
    _require(
        "MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK",
        options.POLICY.PIXELS_PER_BLOCK,
        options.POLICY.PIXELS_PER_BLOCK in (32, 16, 8),
        "32, 16 or 8",
    )
    _require_one_of("MODEL.BLOCKCOPY.BACKEND", options.BACKEND, ("auto", "triton", "torch"))
    _require_one_of(
        "MODEL.BLOCKCOPY.LEARNER.COST_FORM", options.LEARNER.COST_FORM, ("paper", "code")
    )
    _require(
        "MODEL.BLOCKCOPY.LEARNER.UPDATE_EVERY",
        options.LEARNER.UPDATE_EVERY,
        options.LEARNER.UPDATE_EVERY >= 1,
        "at least 1",
    )
    _require(
        "INPUT.CLIP.NUM_FRAMES",
        cfg.INPUT.CLIP.NUM_FRAMES,
        cfg.INPUT.CLIP.NUM_FRAMES >= 1,
        "at least 1",
    )
    for name in cfg.TEST.BLOCKCOPY.COMPARE:
        _require_one_of("TEST.BLOCKCOPY.COMPARE", name, ("stock", "dense"))


def _require(key, value, condition, allowed):
    if not condition:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}.")


def _require_one_of(key, value, allowed):
    _require(key, value, value in allowed, f"one of {', '.join(allowed)}")
