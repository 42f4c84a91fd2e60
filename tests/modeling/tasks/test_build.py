"""The task of a model, by name and by the structure of the model."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from torch import nn

from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.modeling import (
    InstanceTask,
    PanopticTask,
    ProposalTask,
    SemanticTask,
    build_task,
    infer_task,
)
from blockcopy_d2.policy import DetectionMasks


def network(**parts):
    base = nn.Module()
    for name, part in parts.items():
        setattr(base, name, part)
    return base


def roi_heads(num_classes):
    heads = nn.Module()
    heads.num_classes = num_classes
    return heads


def config(name="auto", pixels_per_block=16):
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    cfg.MODEL.BLOCKCOPY.TASK = name
    cfg.MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK = pixels_per_block
    # Nothing of the network is read from the config.
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 99
    return cfg


SEGMENTOR = nn.Sequential(nn.Conv2d(4, 7, 3), nn.Conv2d(7, 5, 1))
RPN = nn.Conv2d(4, 3, 1)

STRUCTURES = {
    "two stages": ({"proposal_generator": RPN, "roi_heads": roi_heads(3)}, InstanceTask, 3),
    "one stage": ({"head": RPN, "num_classes": 6}, InstanceTask, 6),
    "segmentation": ({"sem_seg_head": SEGMENTOR}, SemanticTask, 5),
    "a segmentor with a part named head": (
        {"sem_seg_head": SEGMENTOR, "head": RPN},
        SemanticTask,
        5,
    ),
    "panoptic": ({"roi_heads": roi_heads(3), "sem_seg_head": SEGMENTOR}, PanopticTask, 8),
    "proposals": ({"proposal_generator": RPN, "roi_heads": None}, ProposalTask, 1),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_auto_goes_by_the_structure_of_the_model(case):
    parts, kind, num_classes = STRUCTURES[case]
    task = build_task(config(), network(**parts))
    assert type(task) is kind
    assert (task.num_classes, task.pixels_per_block) == (num_classes, 16)
    with pytest.warns(DeprecationWarning, match="build_task"):
        old = infer_task(network(**parts), 8)
    assert (type(old), old.num_classes, old.pixels_per_block) == (kind, num_classes, 8)


def test_a_name_counts_more_than_the_structure():
    base = network(roi_heads=roi_heads(3), sem_seg_head=SEGMENTOR)
    assert type(build_task(config("SemanticTask"), base)) is SemanticTask
    assert build_task(config("InstanceTask"), base).num_classes == 3


def test_a_model_of_unknown_structure_is_named():
    with pytest.raises(ValueError, match="MODEL.BLOCKCOPY.TASK: InstanceTask"):
        build_task(config(), network(decoder=SEGMENTOR))
    with pytest.raises(ValueError, match="num_classes"):
        build_task(config(), network(head=RPN))


def test_a_task_for_other_models_is_named():
    base = network(proposal_generator=RPN, roi_heads=roi_heads(3))
    for name in ("SemanticTask", "PanopticTask"):
        with pytest.raises(ValueError, match="sem_seg_head.*MODEL.BLOCKCOPY.TASK"):
            build_task(config(name), base)
    task = build_task(config("ProposalTask"), base)
    geometry = {"image_size": (32, 64), "canvas_size": (32, 64), "grid_shape": (1, 2)}
    with pytest.raises(ValueError, match="'proposals'; this model's have 'instances'.*TASK"):
        task.observe({"instances": Instances((32, 64))}, **geometry)


def test_detections_at_policy_resolution_are_taken_as_they_are():
    """CUDA graphs return detections in this form."""
    task = InstanceTask(2, pixels_per_block=8)
    geometry = {"image_size": (32, 64), "canvas_size": (32, 64), "grid_shape": (1, 2)}
    instances = Instances(
        (32, 64),
        pred_boxes=Boxes(torch.tensor([[4.0, 4.0, 40.0, 28.0]])),
        scores=torch.tensor([0.5]),
        pred_classes=torch.tensor([1]),
    )
    seen = task.observe({"instances": instances}, **geometry)
    assert isinstance(seen, DetectionMasks) and seen.masks.any()
    assert task.observe({"instances": seen}, **geometry) is seen
