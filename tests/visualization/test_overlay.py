import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances, RotatedBoxes

from blockcopy_d2.visualization import draw_frame, pixel_classes

HEIGHT, WIDTH = 96, 160
METADATA = Metadata(name="test", thing_classes=["person", "car"])


@pytest.fixture
def image():
    return np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)


def detections(*boxes, classes=None, scores=None, masks=True):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.pred_classes = torch.tensor(classes or [0] * len(boxes))
    instances.scores = torch.tensor(scores or [0.4] * len(boxes))
    if masks:
        instances.pred_masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, boxes):
            mask[y0:y1, x0:x1] = True
    return instances


def changed(picture, image):
    return (picture != image).any(axis=2)


def test_nothing_to_draw_leaves_the_image(image):
    assert np.array_equal(draw_frame(image, None), image)


def test_executed_blocks_are_tinted_and_the_others_dimmed(image):
    active = torch.tensor([[True, False, False], [False, False, True]])
    picture = draw_frame(image, None, active, block_size=64).astype(int)
    executed = np.zeros((HEIGHT, WIDTH), dtype=bool)
    executed[:64, :64] = executed[64:, 128:] = True
    assert (picture[~executed] < 100).all()
    # BGR: the tint is amber, so red goes up
    assert (picture[executed][:, 2] > 100).all()
    assert len(np.unique(picture[executed], axis=0)) == 2  # tint and outline
    assert not np.array_equal(picture[0, 0], picture[32, 32])
    assert (image == 100).all()


def test_blocks_follow_the_scale_of_the_network_input(image):
    # The network saw the image at twice its size: a block of 64 covers 32 pixels of the image.
    active = np.zeros((3, 5), dtype=bool)
    active[1, 2] = True
    picture = draw_frame(image, None, active, block_size=64, scale=2.0)
    rows, columns = np.nonzero(picture[:, :, 2] > 100)
    assert (rows.min(), rows.max()) == (32, 63)
    assert (columns.min(), columns.max()) == (64, 95)


@pytest.mark.parametrize("masks", [True, False])
def test_detections_are_drawn_where_they_are(image, masks):
    picture = draw_frame(image, detections((40, 20, 90, 70), masks=masks), metadata=METADATA)
    difference = changed(picture, image)
    rows, columns = np.nonzero(difference)
    assert difference[20:70, 38:43].any() and difference[45, 65] == masks
    assert rows.min() >= 15 and rows.max() <= 75
    assert columns.min() >= 35 and columns.max() <= 95


def test_color_is_that_of_the_class(image):
    boxes = (10, 40, 40, 70), (60, 40, 90, 70), (110, 40, 140, 70)
    picture = draw_frame(image, detections(*boxes, classes=[0, 1, 0]), metadata=METADATA)
    first, second, third = picture[55, 25], picture[55, 75], picture[55, 125]
    assert np.array_equal(first, third) and not np.array_equal(first, second)


def test_only_confident_detections_are_labelled(image):
    box = (40, 60, 90, 90)
    plain = draw_frame(image, detections(box, scores=[0.4]), metadata=METADATA)
    labelled = draw_frame(image, detections(box, scores=[0.9]), metadata=METADATA)
    assert not changed(plain, image)[:55].any()
    assert changed(labelled, image)[:55].any()


KEYPOINTS = Metadata(
    name="test",
    keypoint_names=["head", "foot"],
    keypoint_connection_rules=[("head", "foot", (0, 255, 0))],
)


@pytest.mark.parametrize("metadata", [KEYPOINTS, METADATA, None], ids=["rules", "names", "none"])
def test_keypoints_are_drawn(image, metadata):
    instances = detections((100, 60, 140, 90), masks=False)
    before = draw_frame(image, instances, metadata=metadata)
    # The third one's score is too low for it to be drawn.
    points = [[20, 20, 0.9], [20, 60, 0.9], [60, 40, 0.01]][: 3 if metadata is not KEYPOINTS else 2]
    instances.pred_keypoints = torch.tensor([points])
    drawn = changed(draw_frame(image, instances, metadata=metadata), before)
    assert drawn[20, 20] and drawn[60, 20] and not drawn[30:50, 50:70].any()
    assert drawn[40, 20] == (metadata is KEYPOINTS)  # The line between them.


def labels_of(monkeypatch, image, instances, names):
    texts = []
    monkeypatch.setattr(
        "detectron2.utils.visualizer.Visualizer.draw_text",
        lambda self, text, *_, **__: texts.append(text),
    )
    draw_frame(image, instances, metadata=Metadata(name="test", thing_classes=names))
    return texts


def test_classes_without_a_name_are_told_by_number(image, monkeypatch, caplog):
    boxes = (10, 40, 40, 70), (60, 40, 90, 70), (110, 40, 140, 70)
    instances = detections(*boxes, classes=[0, 2, 79], scores=[0.9] * 3)
    found = labels_of(monkeypatch, image, instances, ["person", "car"])
    assert found == ["person 90%", "class 2 90%", "class 79 90%"]
    assert "name 2 classes (thing_classes), but the model found class 79" in caplog.text
    assert labels_of(monkeypatch, image, instances, None) == ["0 90%", "2 90%", "79 90%"]


def test_a_name_is_no_formula(image):
    instances = detections((10, 40, 40, 70), scores=[0.9])
    for name in ("$", "a$b$", "$\\frac{$", "50% ü"):
        metadata = Metadata(name="test", thing_classes=[name])
        assert changed(draw_frame(image, instances, metadata=metadata), image)[:38].any()


def test_rotated_boxes_are_drawn_where_they_are(image):
    instances = detections((0, 0, 1, 1), scores=[0.9], masks=False)
    instances.pred_boxes = RotatedBoxes(torch.tensor([[100.0, 50.0, 40.0, 10.0, 90.0]]))
    rows, columns = np.nonzero(changed(draw_frame(image, instances, metadata=METADATA), image))
    # Upright: 10 wide and 40 high, but for the label.
    assert rows.max() in range(68, 74) and columns.min() >= 78
    assert changed(draw_frame(image, instances), image)[50, 93:97].any()


def test_caption_goes_below_the_picture(image):
    picture = draw_frame(image, None, caption=("frame 1", "executed 30 %", "12 ms"))
    strip = picture[HEIGHT:]
    assert np.array_equal(picture[:HEIGHT], image) and len(strip) >= 16
    assert (strip > 128).any(axis=(0, 2)).sum() > WIDTH // 4


def test_columns_of_the_caption_keep_their_place(image):
    def second_column(first):
        strip = draw_frame(image, None, caption=(first, "x"))[HEIGHT:]
        return np.nonzero((strip[:, WIDTH // 2 :] > 128).any(axis=(0, 2)))[0].min()

    assert second_column("1") == second_column("1234")


def test_result_is_a_plain_image(image):
    active = np.ones((2, 3), dtype=bool)
    picture = draw_frame(
        image, detections((5, 5, 30, 30)), active, METADATA, block_size=64, caption="frame 1"
    )
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    assert picture.shape[1:] == (WIDTH, 3)


def test_classes_of_pixels_are_laid_over_in_their_colours(image):
    metadata = Metadata(name="test", stuff_colors=[[200, 0, 0], [0, 0, 250]])  # RGB
    sem_seg = torch.zeros(2, HEIGHT, WIDTH)
    sem_seg[1, :, 80:] = 1
    picture = draw_frame(
        image, None, metadata=metadata, classes=pixel_classes({"sem_seg": sem_seg})
    )
    assert picture[0, 0].tolist() == [45, 45, 155] and picture[0, 80].tolist() == [182, 45, 45]
    # Any number of classes has colours without metadata.
    many = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH)
    assert draw_frame(image, None, classes=many).shape == image.shape


def test_instances_go_before_classes_of_pixels():
    assert pixel_classes({"instances": None, "sem_seg": torch.zeros(2, 4, 4)}) is None
    assert pixel_classes({"instances": None}) is None
