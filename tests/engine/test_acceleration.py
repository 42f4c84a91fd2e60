"""accelerate() on every family of Detectron2's models, a few channels wide."""

import copy
import importlib.util
import logging
import sys
import types
from functools import partial

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import ViT, build_model
from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.structures import RotatedBoxes
from torch import nn

import blockcopy_d2
from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import InstanceAgreement
from blockcopy_d2.modeling import (
    BlockCopyBackbone,
    PanopticTask,
    ProposalTask,
    SemanticTask,
    meta_arch,
)
from blockcopy_d2.policy import AllBlocks, FrameDifference
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule
from tests.sparse.networks import randomize

SIZE = (96, 160)
NARROW = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_STD", "[58.0, 58.0, 58.0]",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.RPN.CONV_DIMS", "(16,)",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_HEADS.NUM_CLASSES", "4",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)",
    "MODEL.RETINANET.NUM_CLASSES", "4",
    "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "50",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "TEST.DETECTIONS_PER_IMAGE", "10",
]  # fmt: skip
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
PROPOSALS = "COCO-Detection/rpn_R_50_FPN_1x.yaml"
POINT_REND = [
    "MODEL.ROI_HEADS.NAME", "PointRendROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "",
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "True",
    "MODEL.POINT_HEAD.NUM_CLASSES", "4",
    "MODEL.POINT_HEAD.FC_DIM", "16",
]  # fmt: skip
POINT_REND_SEMANTIC = [
    "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5",
    "MODEL.POINT_HEAD.NUM_CLASSES", "5",
    "MODEL.POINT_HEAD.FC_DIM", "16",
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS", "2",
]  # fmt: skip
DEEPLAB = [
    "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
    "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone",
    "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res5']",
    "MODEL.RESNETS.RES5_DILATION", "2",
    "MODEL.RESNETS.NORM", "BN",
    "MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res5']",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[8]",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16",
    "MODEL.SEM_SEG_HEAD.NORM", "BN",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy",
]  # fmt: skip
YAML = {
    "Mask R-CNN": [MASK_RCNN],
    "Mask R-CNN C4": ["COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"],
    "Faster R-CNN": ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"],
    "Cascade R-CNN": ["Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"],
    "Keypoint R-CNN": ["COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"],
    "RetinaNet": ["COCO-Detection/retinanet_R_50_FPN_1x.yaml"],
    "ProposalNetwork": [PROPOSALS],
    "PanopticFPN": [PANOPTIC],
    "SemanticSegmentor": [PANOPTIC, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
    "PointRend": [MASK_RCNN, *POINT_REND],
    "PointRend semantic": [PANOPTIC, *POINT_REND_SEMANTIC],
    "DeepLabV3+": ["Base-RCNN-FPN.yaml", *DEEPLAB],
}
LAZY = {
    "lazy Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
    "lazy RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.py",
    "lazy FCOS": "COCO-Detection/fcos_R_50_FPN_1x.py",
    "lazy PanopticFPN": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py",
}


def narrow_lazy_model(name):
    """The model node of a LazyConfig of the zoo: R18, and no threshold."""
    model = model_zoo.get_config(name).model
    model.pixel_std = [58.0, 58.0, 58.0]
    model.backbone.bottom_up.stages.depth = 18
    model.backbone.bottom_up.stages.pop("stride_in_1x1")
    if "roi_heads" in model:
        keep_few_regions(model)
    else:
        if model.backbone.top_block.get("in_feature", "res5") == "res5":
            model.backbone.top_block.in_channels = 512
        model.test_score_thresh = 0.0
        model.test_topk_candidates = 20
        model.max_detections_per_image = 10
    return model


def keep_few_regions(model):
    model.proposal_generator.post_nms_topk = [20, 20]
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.box_predictor.test_topk_per_image = 10


def build_stock(family):
    torch.manual_seed(0)
    if family in LAZY:
        model = instantiate(narrow_lazy_model(LAZY[family])).eval()
    else:
        path, *opts = YAML[family]
        num_keypoints = ["MODEL.ROI_HEADS.NUM_CLASSES", "1"] if "Keypoint" in family else []
        model = build_model(load_config(config_path(path), [*NARROW, *opts, *num_keypoints])).eval()
    randomize(model.backbone)
    return model


def frames(number):
    generator = torch.Generator().manual_seed(3)
    still = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8, generator=generator)
    for index in range(number):
        image = still.clone()
        image[:, 20:60, 10 * index : 10 * index + 40] = 255
        yield {"image": image, "height": 120, "width": 200}


def assert_same(expected, found, tolerance):
    assert expected.keys() == found.keys()
    if "sem_seg" in expected:
        # PointRend refines the most uncertain points: rounding may pick a few others.
        close = torch.isclose(found["sem_seg"], expected["sem_seg"], rtol=tolerance, atol=tolerance)
        assert close.float().mean() >= 1 - tolerance
    for kind in expected.keys() & {"instances", "proposals"}:
        first, second = expected[kind], found[kind]
        assert len(first) == len(second) > 0
        for name, value in first.get_fields().items():
            other = second.get(name)
            if name == "pred_masks":
                assert (value == other).float().mean() >= 1 - tolerance
                continue
            value, other = (getattr(x, "tensor", x) for x in (value, other))
            scale = 1 + value.abs().max().item() if value.is_floating_point() else 1
            torch.testing.assert_close(other, value, rtol=0, atol=tolerance * scale)


# These are other ways to networks that are tested above; one of them stands for all.
ALIKE = ("Faster R-CNN", "lazy Mask R-CNN", "lazy RetinaNet", "lazy PanopticFPN")


@pytest.mark.parametrize(
    "family",
    [pytest.param(x, marks=pytest.mark.slow if x in ALIKE else ()) for x in (*YAML, *LAZY)],
)
def test_a_family_runs_in_blocks(family):
    stock = build_stock(family)
    weights = {key: value.data_ptr() for key, value in stock.state_dict().items()}
    expected = [copy.deepcopy(stock)([inputs])[0] for inputs in frames(3)]
    model = blockcopy_d2.accelerate(stock, block_size=32, learn=False)
    assert isinstance(model.backbone, BlockCopyBackbone)
    for key, address in weights.items():
        assert model.state_dict()[key].data_ptr() == address, f"{key} is a copy"

    stream = model.init_state()
    canvas = None
    for inputs, output in zip(frames(2), expected):
        result = model.step(inputs, stream)
        if canvas is not None:
            full = BlockGrid.full(block_size=32, image_size=canvas)
            result = model.step(inputs, stream, grid=full)
        canvas = result.grid.image_size
        assert_same(output, result.output, tolerance=1e-3)
    assert result.macs == result.dense_macs > 0

    # The square of the third frame moves within a few blocks; the other blocks stay.
    active = torch.zeros_like(result.grid.active)
    active[:, :2, :3] = True
    inputs = list(frames(3))[2]
    result = model.step(inputs, stream, grid=BlockGrid(active, block_size=32, image_size=canvas))
    assert 0 < result.macs < result.dense_macs
    again = model.step(inputs, stream, grid=BlockGrid.empty(block_size=32, image_size=canvas))
    assert again.macs == 0
    assert_same(result.output, again.output, tolerance=0)

    # The policy runs too, on this kind of output.
    decided = model.step(inputs, stream)
    assert decided.observation.output.shape[1] == model.task.num_classes
    assert model.information_gain(decided).isfinite().all()


def test_what_the_policy_sees_of_an_output():
    proposals = blockcopy_d2.accelerate(build_stock("ProposalNetwork"), block_size=32)
    assert isinstance(proposals.task, ProposalTask) and proposals.task.num_classes == 1
    panoptic = blockcopy_d2.accelerate(build_stock("PanopticFPN"), block_size=32)
    assert isinstance(panoptic.task, PanopticTask)
    assert panoptic.task.num_classes == 4 + 54
    deeplab = blockcopy_d2.accelerate(build_stock("DeepLabV3+"), block_size=32)
    assert isinstance(deeplab.task, SemanticTask) and deeplab.task.num_classes == 5


@pytest.mark.parametrize(
    "family",
    [
        "Mask R-CNN",
        "SemanticSegmentor",
        # both of the above, and a part of the first
        pytest.param("PanopticFPN", marks=pytest.mark.slow),
        pytest.param("ProposalNetwork", marks=pytest.mark.slow),
    ],
)
def test_config_and_module_give_the_same_model(family, tmp_path):
    path, *opts = YAML[family]
    torch.save({"model": build_stock(family).state_dict()}, tmp_path / "model.pth")
    opts = [*NARROW, *opts, "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    options = {"target": 0.5, "block_size": 32, "policy": "FrameDifference", "scene_cut": 0}
    options["amp"] = True
    models = [
        blockcopy_d2.accelerate(base_config(load_config(config_path(path), opts)), **options),
        blockcopy_d2.accelerate(build_stock(family), **options),
    ]
    assert isinstance(models[0].policy, FrameDifference) and models[0].policy.target == 0.5
    assert models[0].amp and models[1].amp
    for index, inputs in enumerate(frames(3)):
        inputs = {**inputs, "video_id": "clip", "frame_index": index}
        first, second = (model([inputs])[0] for model in models)
        assert_same(first, second, tolerance=0)
    assert {type(m) for m in models[0].modules()} == {type(m) for m in models[1].modules()}


def test_an_accelerated_model_learns_as_it_runs():
    model = blockcopy_d2.accelerate(build_stock("Faster R-CNN"), target=0.4, block_size=32)
    assert model.learner.target == 0.4
    before = copy.deepcopy(model.state_dict())
    for index, inputs in enumerate(frames(6)):
        model([{**inputs, "video_id": "clip", "frame_index": index}])
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed and all(key.startswith("policy.") for key in changed)


class Mlp(nn.Sequential):
    def __init__(self, in_features, hidden_features, act_layer):
        super().__init__(nn.Linear(in_features, hidden_features), act_layer())
        self.append(nn.Linear(hidden_features, in_features))


def vit_detector():
    model = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    vit = L(ViT)(
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        drop_path_rate=0.0,
        window_size=2,
        window_block_indexes=[0],
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        out_feature="last_feat",
    )
    model.backbone = L(SimpleFeaturePyramid)(
        net=vit,
        in_feature="${.net.out_feature}",
        out_channels=256,
        norm="LN",
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        square_pad=64,
        top_block=model.backbone.top_block,
    )
    keep_few_regions(model)
    return model


def swin_detector():
    model = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    model.backbone.bottom_up = L(SwinTransformer)(
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=4,
        drop_path_rate=0.0,
    )
    model.backbone.in_features = ["p0", "p1", "p2", "p3"]
    keep_few_regions(model)
    return model


@pytest.mark.parametrize(
    "build, name", [(vit_detector, "SimpleFeaturePyramid"), (swin_detector, "FPN")]
)
def test_a_transformer_runs_densely_and_says_so_once(build, name, caplog, monkeypatch):
    # ViT takes its MLP from timm.
    timm = types.SimpleNamespace(DropPath=None, Mlp=Mlp)
    monkeypatch.setitem(sys.modules, "timm.models.layers", timm)
    torch.manual_seed(0)
    stock = instantiate(build()).eval()
    size = (64, 64) if build is vit_detector else SIZE
    inputs = [{**x, "image": x["image"][:, : size[0], : size[1]]} for x in frames(2)]
    with torch.no_grad():
        expected = [copy.deepcopy(stock)([x])[0] for x in inputs]
    with caplog.at_level(logging.WARNING):
        model = blockcopy_d2.accelerate(stock)
    warnings = [r.getMessage() for r in caplog.records if "densely" in r.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith(f"{name} is not fully convolutional")
    assert isinstance(model.policy, AllBlocks)
    assert not any(isinstance(module, BlockSparseModule) for module in model.modules())
    for index, (x, output) in enumerate(zip(inputs, expected)):
        (found,) = model([{**x, "video_id": "clip", "frame_index": index}])
        assert_same(output, found, tolerance=1e-5)


def test_a_lazy_config_loads_its_weights_and_options(tmp_path):
    cfg = model_zoo.get_config(LAZY["lazy RetinaNet"])
    cfg.model = narrow_lazy_model(LAZY["lazy RetinaNet"])
    torch.save({"model": build_stock("lazy RetinaNet").state_dict()}, tmp_path / "model.pth")
    cfg.train.init_checkpoint = str(tmp_path / "model.pth")
    cfg.blockcopy = {"block_size": 32, "policy": "FrameDifference", "target": 0.2}
    model = blockcopy_d2.accelerate(cfg)
    assert model.block_size == 32 and model.policy.target == 0.2
    expected = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    for key, value in expected.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_what_cannot_be_accelerated_is_named():
    with pytest.raises(TypeError, match="Linear cannot be accelerated.* it has no backbone"):
        blockcopy_d2.accelerate(nn.Linear(2, 2))
    stock = build_stock("RetinaNet")
    with pytest.raises(TypeError, match="DataParallel .*give its attribute module"):
        blockcopy_d2.accelerate(nn.DataParallel(stock))
    with pytest.raises(TypeError, match="give the model before"):
        blockcopy_d2.accelerate(types.SimpleNamespace(_orig_mod=stock, backbone=stock.backbone))
    with pytest.raises(TypeError, match="backbone has no output_shape and no size_divisibility"):
        parts = {name: getattr(stock, name) for name in ("pixel_mean", "pixel_std")}
        blockcopy_d2.accelerate(types.SimpleNamespace(backbone=nn.Identity(), **parts))
    with pytest.raises(TypeError, match="no option blocksize; expected block_size"):
        blockcopy_d2.accelerate(stock, blocksize=32)
    with pytest.raises(ValueError, match="TARGET is 3.0"):
        blockcopy_d2.accelerate(stock, target=3)
    model = blockcopy_d2.accelerate(stock, block_size=32)
    with pytest.raises(TypeError, match="accelerated already"):
        blockcopy_d2.accelerate(model)


ROTATED = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN",
    "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES", "[[-90, 0, 90]]",
    "MODEL.RPN.BBOX_REG_WEIGHTS", "(1, 1, 1, 1, 1)",
    "MODEL.ROI_HEADS.NAME", "RROIHeads",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(10, 10, 5, 5, 1)",
    "MODEL.MASK_ON", "False",
]  # fmt: skip


def test_rotated_boxes_run_or_the_missing_extension_is_named(monkeypatch):
    stock = build_model(load_config(config_path(MASK_RCNN), [*NARROW, *ROTATED])).eval()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="RRPN needs rotated boxes.* detectron2._C"):
        blockcopy_d2.accelerate(stock, block_size=32)


def nms_rotated(boxes, scores, threshold):
    """Stands for NMS: keeps boxes whose centres lie apart."""
    kept = []
    for index in scores.argsort(descending=True).tolist():
        centres = boxes[kept, :2] - boxes[index, :2]
        if not kept or centres.norm(dim=1).min() > 4:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def roi_align_rotated(features, rois, scale, height, width, ratio):
    pooled = features.mean((2, 3), keepdim=True).expand(-1, -1, height, width)
    return pooled[rois[:, 0].long()] + rois[:, 1, None, None, None] / 100


@pytest.mark.skipif(
    importlib.util.find_spec("detectron2._C") is not None, reason="has the operators themselves"
)
def test_a_model_of_rotated_boxes_runs_in_blocks(monkeypatch):
    operators = types.SimpleNamespace(
        nms_rotated=nms_rotated, roi_align_rotated_forward=roi_align_rotated
    )
    monkeypatch.setattr(torch.ops, "detectron2", operators)
    monkeypatch.setattr(meta_arch, "check_compiled_operators", lambda model: None)
    torch.manual_seed(0)
    stock = build_model(load_config(config_path(MASK_RCNN), [*NARROW, *ROTATED])).eval()
    randomize(stock.backbone)
    with torch.no_grad():
        expected = [copy.deepcopy(stock)([inputs])[0] for inputs in frames(2)]
    assert isinstance(expected[0]["instances"].pred_boxes, RotatedBoxes)
    model = blockcopy_d2.accelerate(stock, block_size=32, policy="AllBlocks")
    stream = model.init_state()
    agreement = InstanceAgreement(score_threshold=0)
    for inputs, output in zip(frames(2), expected):
        result = model.step(inputs, stream)
        assert_same(output, result.output, tolerance=1e-3)
        agreement.process([output], [result.output])
    assert model.information_gain(result).isfinite().all()
    assert agreement.evaluate()["agreement"]["AP"] > 99
