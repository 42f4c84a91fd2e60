"""SwiftNet and DeepLabV3+: the invariants of block-sparse execution, at small widths."""

import copy

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import (
    BlockGrid,
    BlockSparseModule,
    MaskedDenseOracle,
    StreamState,
    block_sparse,
)
from tests.sparse.networks import randomize
from tests.sparse.test_networks import assert_equal, frames, grids, tensors

SWIFTNET = ["MODEL.FPN.OUT_CHANNELS", "16"]
BOTTLENECKS = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
]  # fmt: skip
DEEPLAB = [
    *BOTTLENECKS,
    "MODEL.RESNETS.DEPTH", "50",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[6]",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16",
    "INPUT.CROP.SIZE", "(64, 128)",
]  # fmt: skip
NETWORKS = {
    "swiftnet-18": ["Cityscapes/swiftnet_R_18.yaml", *SWIFTNET],
    "swiftnet-50": ["Cityscapes/swiftnet_R_50.yaml", *SWIFTNET, *BOTTLENECKS],
    "deeplab": ["Cityscapes/deeplab_v3_plus_R_101.yaml", *DEEPLAB],
    "deeplab-global": [
        "Cityscapes/deeplab_v3_plus_R_101.yaml", *DEEPLAB, "INPUT.CROP.ENABLED", "False",
    ],
}  # fmt: skip
# The head of "deeplab" pools over windows of its training crop, of which frames must be a multiple.
CASES = [
    pytest.param("swiftnet-18", (128, 256), 32, marks=pytest.mark.slow),
    ("swiftnet-18", (165, 230), 64),
    pytest.param("swiftnet-50", (256, 512), 128, marks=pytest.mark.slow),
    ("swiftnet-50", (165, 230), 32),
    ("deeplab", (128, 256), 64),
    pytest.param("deeplab", (64, 128), 32, marks=pytest.mark.slow),
    pytest.param("deeplab-global", (128, 256), 32, marks=pytest.mark.slow),
    ("deeplab-global", (165, 230), 64),
    pytest.param("deeplab-global", (165, 230), 128, marks=pytest.mark.slow),
]


def config(name, *opts):
    path, *network_opts = NETWORKS[name]
    common = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return load_config(config_path(path), [*network_opts, *common, *opts])


def build(name):
    torch.manual_seed(0)
    model = build_model(config(name)).eval()
    randomize(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name,size,block_size", CASES)
def test_matches_oracle(name, size, block_size):
    model = build(name)
    backbone, head = BlockSparseModule(model.backbone), BlockSparseModule(model.sem_seg_head)
    images = list(frames(model, size, 6))
    padded = tuple(images[0].shape[-2:])
    features = model.backbone(images[0])
    full = BlockGrid.full(block_size=block_size, image_size=padded)
    oracles = [
        MaskedDenseOracle(
            module.dense_module, args, unmasked=module.program(args, {}, full).densified
        )
        for module, args in ((backbone, (images[0],)), (head, (features,)))
    ]
    state = StreamState()
    previous = None
    for image, grid in zip(images, grids(padded, block_size)):
        with block_sparse(torch.nn.ModuleList([backbone, head]), grid, state) as frame:
            outputs = head(backbone(image))
        if grid.is_empty:
            assert frame.macs == 0
            assert all(torch.equal(*pair) for pair in zip(tensors(outputs), previous))
            continue
        assert_equal(outputs, oracles[1]((oracles[0]((image,), grid),), grid))
        assert 0 < frame.macs <= frame.dense_macs
        if grid.is_full:
            assert_equal(outputs, model.sem_seg_head(model.backbone(image)))
            assert frame.macs == frame.dense_macs
        previous = [tensor.clone() for tensor in tensors(outputs)]


def densified(name, size, block_size):
    """Names of the calls without a block-sparse rule, in the backbone and in the head."""
    model = build(name)
    grid = BlockGrid.full(block_size=block_size, image_size=size)
    with torch.no_grad():
        image = torch.zeros(1, 3, *size)
        features = model.backbone(image)
        modules = ((model.backbone, (image,)), (model.sem_seg_head, (features,)))
        return [
            BlockSparseModule(module).program(args, {}, grid).densified for module, args in modules
        ]


def test_all_of_swiftnet_is_block_sparse_where_its_cells_are_pixels():
    # Cells of the two coarser grids are larger than blocks. Only resizing their few channels is
    # left.
    backbone, head = densified("swiftnet-50", (256, 512), 64)
    assert backbone == ["upsample_bilinear2d_2"] and head == []


def test_only_what_follows_its_pool_is_densified_in_deeplab():
    backbone, head = densified("deeplab-global", (128, 256), 64)
    assert backbone == []
    assert [name.rstrip("_0123456789") for name in head] == [
        "conv2d",
        "relu",
        "upsample_bilinear2d",
    ]
    # Windows of the training crop slide over a larger frame.
    _, sliding = densified("deeplab", (128, 256), 64)
    assert [name.rstrip("_0123456789") for name in sliding[:1]] == ["avg_pool2d"]
    _, whole = densified("deeplab", (64, 128), 64)
    assert len(whole) == len(head)


@pytest.fixture(scope="module", params=NETWORKS)
def models(request):
    """The video model, and Detectron2's own with the same weights."""
    cfg = config(
        request.param, "MODEL.BLOCKCOPY.ENABLED", "True", "MODEL.BLOCKCOPY.BLOCK_SIZE", "32"
    )
    stock = build_model(base_config(cfg)).eval()
    randomize(stock)
    model = build_model(cfg)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("policy.") for key in missing)
    return model, stock


def inputs(number, seed=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (number, 3, 64, 128), dtype=torch.uint8, generator=generator)
    return [
        {"image": image, "height": 96, "width": 192, "frame_index": index}
        for index, image in enumerate(images)
    ]


def test_state_dict_is_detectron2s_plus_the_policy(models):
    model, stock = models
    own = {key for key in model.state_dict() if not key.startswith("policy.")}
    assert own == set(stock.state_dict())


def test_all_blocks_are_stock_and_no_block_repeats(models):
    model, stock = models
    first, second = inputs(2)
    stream = VideoStream()
    with torch.no_grad():
        expected = stock([copy.deepcopy(first)])[0]["sem_seg"]
    result = model.step(first, stream)
    assert result.output["sem_seg"].shape == (19, 96, 192)
    torch.testing.assert_close(result.output["sem_seg"], expected, rtol=1e-3, atol=1e-3)
    empty = BlockGrid.empty(block_size=32, image_size=(64, 128))
    repeated = model.step(second, stream, grid=empty)
    assert torch.equal(repeated.output["sem_seg"], result.output["sem_seg"])
    assert repeated.macs == 0
    assert not model.information_gain(repeated).any()


def test_streams_interleaved_equal_streams_one_by_one(models):
    model, _ = models
    clips = {"a": inputs(3), "b": inputs(3, seed=4)}

    def run(order):
        streams = {name: VideoStream() for name in clips}
        outputs = {name: [] for name in clips}
        for name, index in order:
            grid = grids((64, 128), 32)[index]
            result = model.step(clips[name][index], streams[name], grid=grid)
            outputs[name].append(result.output["sem_seg"].clone())
        return outputs

    after = run([(name, index) for name in clips for index in range(3)])
    mixed = run([(name, index) for index in range(3) for name in clips])
    for name in clips:
        assert all(torch.equal(*pair) for pair in zip(after[name], mixed[name], strict=True))


def macs(path, size, block_size=128):
    """(executed by a full grid, executed by an empty one) of backbone and head."""
    cfg = load_config(config_path(path), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(base_config(cfg)).eval()
    grid = BlockGrid.full(block_size=block_size, image_size=size)
    image = torch.zeros(1, 3, *size)
    features = {
        name: torch.zeros(1, shape.channels, size[0] // shape.stride, size[1] // shape.stride)
        for name, shape in model.backbone.output_shape().items()
    }
    modules = ((model.backbone, (image,)), (model.sem_seg_head, (features,)))
    return sum(
        BlockSparseModule(module).program(args, {}, grid).macs(grid)[0] for module, args in modules
    )


def test_swiftnet_costs_what_the_paper_says():
    assert macs("Cityscapes/swiftnet_R_50.yaml", (1024, 2048)) == pytest.approx(204.6e9, rel=0.01)


# projects/DeepLab/configs/Cityscapes-SemanticSegmentation of Detectron2, over its
# configs/Base-RCNN-DilatedC5.yaml: Base-DeepLabV3-OS16-Semantic.yaml, then
# deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml.
DEEPLAB_CONFIGS = (
    """
MODEL:
  META_ARCHITECTURE: "SemanticSegmentor"
  BACKBONE:
    FREEZE_AT: 0
  SEM_SEG_HEAD:
    NAME: "DeepLabV3Head"
    IN_FEATURES: ["res5"]
    ASPP_CHANNELS: 256
    ASPP_DILATIONS: [6, 12, 18]
    ASPP_DROPOUT: 0.1
    CONVS_DIM: 256
    COMMON_STRIDE: 16
    NUM_CLASSES: 19
    LOSS_TYPE: "hard_pixel_mining"
DATASETS:
  TRAIN: ("cityscapes_fine_sem_seg_train",)
  TEST: ("cityscapes_fine_sem_seg_val",)
SOLVER:
  BASE_LR: 0.01
  MAX_ITER: 90000
  LR_SCHEDULER_NAME: "WarmupPolyLR"
  IMS_PER_BATCH: 16
INPUT:
  MIN_SIZE_TRAIN: (512, 768, 1024, 1280, 1536, 1792, 2048)
  MIN_SIZE_TRAIN_SAMPLING: "choice"
  MIN_SIZE_TEST: 1024
  MAX_SIZE_TRAIN: 4096
  MAX_SIZE_TEST: 2048
  CROP:
    ENABLED: True
    TYPE: "absolute"
    SIZE: (512, 1024)
    SINGLE_CATEGORY_MAX_AREA: 1.0
DATALOADER:
  NUM_WORKERS: 10
""",
    """
MODEL:
  WEIGHTS: "detectron2://DeepLab/R-103.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE:
    NAME: "build_resnet_deeplab_backbone"
  RESNETS:
    DEPTH: 101
    NORM: "SyncBN"
    OUT_FEATURES: ["res2", "res5"]
    RES5_MULTI_GRID: [1, 2, 4]
    STEM_TYPE: "deeplab"
    STEM_OUT_CHANNELS: 128
    STRIDE_IN_1X1: False
  SEM_SEG_HEAD:
    NAME: "DeepLabV3PlusHead"
    IN_FEATURES: ["res2", "res5"]
    PROJECT_FEATURES: ["res2"]
    PROJECT_CHANNELS: [48]
    NORM: "SyncBN"
    COMMON_STRIDE: 4
INPUT:
  FORMAT: "RGB"
""",
)


@pytest.fixture
def detectron2s_deeplab():
    cfg = load_config(config_path("Base-RCNN-DilatedC5.yaml"))
    for text in DEEPLAB_CONFIGS:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
    return cfg


def test_deeplab_config_is_detectron2s_with_its_trained_weights(detectron2s_deeplab):
    ours = load_config(config_path("Cityscapes/deeplab_v3_plus_R_101.yaml"))
    theirs = detectron2s_deeplab
    assert ours.MODEL.WEIGHTS.split("/")[-3] == "deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16"
    theirs.MODEL.WEIGHTS = ours.MODEL.WEIGHTS
    for part in ("BACKBONE", "RESNETS", "SEM_SEG_HEAD", "PIXEL_MEAN", "PIXEL_STD", "WEIGHTS"):
        assert ours.MODEL[part] == theirs.MODEL[part], part
    assert ours.INPUT.dump() == theirs.INPUT.dump()
    assert ours.DATASETS.dump() == theirs.DATASETS.dump()
    for key in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "LR_SCHEDULER_NAME"):
        assert ours.SOLVER[key] == theirs.SOLVER[key]


def test_detectron2s_deeplab_config_takes_the_switch(detectron2s_deeplab, tmp_path):
    file = tmp_path / "deeplab.yaml"
    file.write_text(detectron2s_deeplab.dump())
    small = ["MODEL.DEVICE", "cpu", *DEEPLAB]
    cfg = load_config(str(file), [*small, "MODEL.BLOCKCOPY.ENABLED", "True"])
    model = build_model(cfg)
    stock = build_model(base_config(cfg))
    assert isinstance(model.backbone, BlockSparseModule)
    assert isinstance(model.sem_seg_head, BlockSparseModule)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("policy.") for key in missing)
