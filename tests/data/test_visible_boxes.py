import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from blockcopy_d2.data.visible_boxes import VisibleBoxMapper


@pytest.fixture
def example(tmp_path):
    """An image of 40 x 60 pixels with two pedestrians and a group."""
    file = tmp_path / "image.png"
    cv2.imwrite(str(file), np.zeros((40, 60, 3), dtype=np.uint8))
    boxes = [([10, 5, 8, 20], [10, 5, 8, 10]), ([30, 10, 8, 20], [34, 10, 4, 20])]
    annotations = [
        {
            "bbox": box,
            "visible_bbox": visible,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": 0,
        }
        for box, visible in boxes
    ]
    annotations.append({**annotations[0], "iscrowd": 1})
    return {"file_name": str(file), "height": 40, "width": 60, "annotations": annotations}


def mapper(*augmentations):
    return VisibleBoxMapper(is_train=True, augmentations=list(augmentations), image_format="RGB")


def test_boxes_follow_the_image(example):
    doubled = T.ResizeShortestEdge(80, 1000)
    instances = mapper(doubled, T.RandomFlip(prob=1.0))(example)["instances"]
    assert instances.image_size == (80, 120)
    boxes = torch.tensor([[84.0, 10, 100, 50], [44, 20, 60, 60]])
    visible = torch.tensor([[84.0, 10, 100, 30], [44, 20, 52, 60]])
    torch.testing.assert_close(instances.gt_boxes.tensor, boxes)
    torch.testing.assert_close(instances.gt_visible_boxes.tensor, visible)
    assert len(example["annotations"]) == 3, "the data set's own dict must stay as it is"


def test_what_is_cropped_away_is_not_visible(example):
    class Crop(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(0, 0, 35, 40)

    instances = mapper(Crop())(example)["instances"]
    torch.testing.assert_close(
        instances.gt_visible_boxes.tensor, torch.tensor([[10.0, 5, 18, 15], [34, 10, 35, 30]])
    )

    class Left(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(0, 0, 25, 40)

    instances = mapper(Left())(example)["instances"]
    assert len(instances) == 1 and len(instances.gt_visible_boxes) == 1


def test_without_visible_boxes_it_is_detectron2s(example):
    del example["annotations"][1]["visible_bbox"]
    instances = mapper()(example)["instances"]
    assert len(instances) == 2 and not instances.has("gt_visible_boxes")
    example["annotations"] = []
    assert len(mapper()(example)["instances"]) == 0
