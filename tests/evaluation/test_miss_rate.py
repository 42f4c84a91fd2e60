import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from blockcopy_d2.config import add_blockcopy_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import MissRateEvaluator, build_evaluator
from blockcopy_d2.evaluation.miss_rate import (
    HEAVILY_OCCLUDED,
    SETTINGS,
    PedestrianFrame,
    log_average_miss_rate,
)
from blockcopy_d2.resources import config_path

REASONABLE, BARE, PARTIAL, HEAVY = SETTINGS
# A person of 100 pixels and one of 60, both with Caltech's aspect ratio.
TALL = (100, 100, 141, 200)
SHORT = (300, 100, 324.6, 160)
NOWHERE = (600, 100, 641, 200)


def make_frame(persons=(), detections=()):
    """
    Args:
        persons (sequence): (box, visibility, ignored).
        detections (sequence): (box, score).
    """
    boxes, visibility, ignored = zip(*persons) if persons else ((), (), ())
    found, scores = zip(*detections) if detections else ((), ())
    return PedestrianFrame(
        gt_boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        gt_visibility=np.array(visibility, dtype=float),
        gt_ignored=np.array(ignored, dtype=bool),
        boxes=np.array(found, dtype=float).reshape(-1, 4),
        scores=np.array(scores, dtype=float),
    )


def person(box, visibility=1.0, ignored=False):
    return box, visibility, ignored


def shifted(box, dx=0, dy=0):
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def miss_rate(*frames, setting=REASONABLE):
    return log_average_miss_rate(list(frames), setting)


def test_a_perfect_detector_misses_nobody():
    assert miss_rate(make_frame([person(TALL)], [(TALL, 0.9)])) == 0


def test_no_detections_miss_everybody():
    assert miss_rate(make_frame([person(TALL)]), make_frame([person(SHORT)])) == 1


def test_with_nobody_to_be_found_there_is_no_miss_rate():
    assert math.isnan(miss_rate(make_frame([], [(TALL, 0.9)])))
    assert math.isnan(miss_rate(make_frame([person(TALL, ignored=True)], [(TALL, 0.9)])))
    assert math.isnan(miss_rate())


def test_half_of_the_persons_at_every_rate():
    # No false positive at all: the curve ends at a miss rate of 1/2 and stays there.
    frame = make_frame([person(TALL), person(SHORT)], [(TALL, 0.9)])
    assert miss_rate(frame) == pytest.approx(0.5)


def test_nine_points_of_a_curve():
    """
    Ten frames, a person each. By score: 5 hits, a false detection, 3 hits, another false one, a
    hit. Miss rate 0.5 below 0.1 false positives per image, 0.2 from there on to below 0.2, then
    0.1 to 1 false positives per image: one person is never found.
    """
    scores = iter(np.linspace(0.95, 0.05, 11))
    found = [True] * 5 + [False] + [True] * 3 + [False] + [True]
    frames, persons = [], 0
    for hit in found:
        score = next(scores)
        if hit:
            frames.append(make_frame([person(TALL)], [(TALL, score)]))
            persons += 1
        else:
            # False detections are on frames with a hit.
            last = frames[-1]
            last.boxes = np.concatenate([last.boxes, [NOWHERE]])
            last.scores = np.append(last.scores, score)
    frames.append(make_frame([person(TALL)]))
    assert len(frames) == 10
    # 0.01, 0.0178, 0.0316, 0.0562 | 0.1, 0.1778 | 0.3162, 0.5623, 1
    expected = (0.5**4 * 0.2**2 * 0.1**3) ** (1 / 9)
    assert miss_rate(*frames) == pytest.approx(expected)


def test_rates_that_the_first_false_detection_exceeds_miss_everybody():
    # Two frames: a false detection comes first, at 0.5 false positives per image.
    frames = [
        make_frame([person(TALL)], [(NOWHERE, 0.9), (TALL, 0.8)]),
        make_frame([person(TALL)]),
    ]
    assert miss_rate(*frames) == pytest.approx((1**7 * 0.5**2) ** (1 / 9))


@pytest.mark.parametrize("overlap, expected", [(0.51, 0.0), (0.5, 0.0), (0.49, 1.0)])
def test_the_overlap_of_a_match_is_at_least_one_half(overlap, expected):
    # A part of the height of the person, so that the union is the person's own box.
    part = (100, 100, 200, 100 + 200 * overlap)
    assert miss_rate(make_frame([person((100, 100, 200, 300))], [(part, 0.9)])) == expected


def test_a_second_detection_of_a_person_is_false():
    # At 1 false positive per image nobody is missed; below it the person is. The far detection is
    # the better one, and comes after the double.
    frame = make_frame(
        [person(TALL), person(SHORT)],
        [(TALL, 0.9), (shifted(TALL, 2), 0.8), (SHORT, 0.7)],
    )
    assert miss_rate(frame) == 0
    frames = [frame, make_frame([person(TALL), person(SHORT)], [(TALL, 0.9)])]
    # 2 of 4 found below 0.5 false positives per image, 3 of 4 from there on.
    assert miss_rate(*frames) == pytest.approx((0.5**7 * 0.25**2) ** (1 / 9))


def test_detections_take_the_free_person_of_largest_overlap():
    first, second = TALL, shifted(TALL, 12)
    # Overlaps .74 and .57 with the better detection; 1 and .55 with the worse one.
    frame = make_frame([person(first), person(second)], [(shifted(TALL, 5), 0.9), (first, 0.8)])
    # The better one takes the first person, the worse one is left with the second.
    assert miss_rate(frame) == 0
    far = shifted(TALL, 30)
    frame = make_frame([person(first), person(far)], [(shifted(TALL, 5), 0.9), (first, 0.8)])
    assert miss_rate(frame) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "hidden",
    [
        person((100, 100, 400, 300), ignored=True),  # a group
        person((95, 100, 146, 200), visibility=0.3),
        person((100, 100, 141, 149)),
    ],
)
def test_what_is_ignored_absorbs_detections(hidden):
    absorbed = [(shifted(hidden[0], 2, 2), 0.99), (hidden[0], 0.98)]
    frame = make_frame([hidden, person(SHORT)], [*absorbed, (SHORT, 0.5)])
    assert miss_rate(frame) == 0
    # The same detections with nothing there are false.
    assert miss_rate(make_frame([person(SHORT)], [(NOWHERE, 0.99), (SHORT, 0.5)])) == 0
    assert miss_rate(make_frame([person(SHORT)], [*absorbed, (SHORT, 0.5)])) == 1


@pytest.mark.parametrize("share, expected", [(0.5, 0.0), (0.4, 1.0)])
def test_ignored_overlap_is_a_share_of_the_detection(share, expected):
    group = person((0, 0, 500, 500), ignored=True)
    # 100 wide, ``share`` of it within the group; three of them, so more than 1 per image.
    false = [((500 - 100 * share, y, 600 - 100 * share, y + 100), 0.9) for y in (0, 150, 300)]
    frame = make_frame([group, person((700, 0, 741, 100))], [*false, ((700, 0, 741, 100), 0.5)])
    assert miss_rate(frame) == expected


def test_a_person_comes_before_what_is_ignored_around_it():
    group = person((0, 0, 500, 500), ignored=True)
    assert miss_rate(make_frame([group, person(TALL)], [(TALL, 0.9)])) == 0


@pytest.mark.parametrize("height, expected", [(39.9, 0.0), (40.0, 1.0)])
def test_detections_below_the_height_range_are_dropped(height, expected):
    """50 / 1.25 = 40 pixels."""
    false = [((x, 400, x + 20, 400 + height), 0.9) for x in (0, 50)]
    assert miss_rate(make_frame([person(TALL)], [*false, (TALL, 0.5)])) == expected


def test_a_low_detection_may_still_be_of_a_person():
    # A box of 45 pixels for a person of 60: within the factor, overlap 0.75.
    assert miss_rate(make_frame([person(SHORT)], [((300, 110, 324.6, 155), 0.9)])) == 0


def test_at_most_a_thousand_detections_of_a_frame():
    """Detections are limited in number before low ones are dropped."""
    low = [((x % 100, 400, x % 100 + 4, 410), 0.9) for x in range(999)]
    assert miss_rate(make_frame([person(TALL)], [*low, (TALL, 0.5)])) == 0
    low.append(((0, 400, 4, 410), 0.9))
    assert miss_rate(make_frame([person(TALL)], [*low, (TALL, 0.5)])) == 1


@pytest.mark.parametrize(
    "height, visibility, settings",
    [
        (50, 1.0, {REASONABLE, BARE}),
        (50, 0.9, {REASONABLE, BARE, PARTIAL}),
        (50, 0.89, {REASONABLE, PARTIAL}),
        (50, 0.65, {REASONABLE, PARTIAL, HEAVY}),
        (50, 0.64, {HEAVY}),
        (50, 0.0, {HEAVY}),
        (49.9, 1.0, set()),
    ],
)
def test_settings(height, visibility, settings):
    frame = make_frame([person((100, 100, 120, 100 + height), visibility)])
    counted = {s for s in SETTINGS if not math.isnan(log_average_miss_rate([frame], s))}
    assert counted == settings


def test_a_detection_without_width_overlaps_nothing():
    with np.errstate(all="raise", under="ignore"):
        frame = make_frame(
            [person(TALL), person(SHORT, ignored=True)], [((120, 100, 120, 200), 0.9)]
        )
        assert math.isclose(miss_rate(frame), 1)


def reference(frames, setting):
    """The miss rate by its definition, person by person and threshold by threshold."""
    outcomes, persons = [], 0
    for index, frame in enumerate(frames):
        free, others = [], []
        for box, visibility, ignored in zip(frame.gt_boxes, frame.gt_visibility, frame.gt_ignored):
            wanted = (
                not ignored
                and box[3] - box[1] >= setting.min_height
                and setting.min_visibility <= visibility <= setting.max_visibility
            )
            (free if wanted else others).append(box)
        persons += len(free)
        for box, score in sorted(zip(frame.boxes, frame.scores), key=lambda pair: -pair[1]):
            if box[3] - box[1] < setting.min_height / 1.25:
                continue
            overlaps = [intersection(box, g) / union(box, g) for g in free]
            if overlaps and max(overlaps) >= 0.5:
                del free[int(np.argmax(overlaps))]
                outcomes.append((score, True, index))
            elif not any(intersection(box, g) / area(box) >= 0.5 for g in others):
                outcomes.append((score, False, index))
    rates = []
    for rate in np.logspace(-2, 0, 9).round(4):
        best = 0
        for threshold, _, _ in outcomes:
            above = [hit for score, hit, _ in outcomes if score >= threshold]
            if above.count(False) / len(frames) <= rate:
                best = max(best, above.count(True))
        rates.append(1 - best / persons)
    return math.prod(rates) ** (1 / 9)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def union(a, b):
    return area(a) + area(b) - intersection(a, b)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_crowded_random_frames_against_the_definition(setting):
    random = np.random.default_rng(1)
    frames = []
    for _ in range(20):
        heights = random.uniform(30, 120, 8)
        x, y = random.uniform(0, 250, 8), random.uniform(0, 100, 8)
        boxes = np.stack([x, y, x + 0.41 * heights, y + heights], axis=1)
        found = boxes[random.random(8) < 0.7]
        found = np.concatenate([found + random.normal(0, 4, found.shape), boxes[:2] + 60])
        frames.append(
            PedestrianFrame(
                gt_boxes=boxes,
                gt_visibility=random.uniform(0.3, 1.02, 8),
                gt_ignored=random.random(8) < 0.2,
                boxes=found,
                scores=random.random(len(found)),
            )
        )
    expected = reference(frames, setting)
    assert 0.05 < expected < 0.95
    assert log_average_miss_rate(frames, setting) == pytest.approx(expected)


NAME = "test_miss_rate"


@pytest.fixture
def dataset():
    """Three frames with one person each, of which the second is not labelled."""

    def load():
        for index in range(3):
            frame = {"image_id": f"frame{index}", "labelled": index != 1}
            if frame["labelled"]:
                box = {"bbox": [100, 100, 41, 100], "bbox_mode": BoxMode.XYWH_ABS}
                group = {"bbox": [300, 0, 200, 300], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
                frame["annotations"] = [{**box, "visibility": 0.95}, group]
            yield frame

    DatasetCatalog.register(NAME, lambda: list(load()))
    MetadataCatalog.get(NAME).set(evaluator_type="citypersons", thing_classes=["pedestrian"])
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def output(*detections):
    instances = Instances((576, 768))
    instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in detections]).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in detections])
    instances.pred_classes = torch.tensor([c for _, _, c in detections], dtype=torch.int64)
    return {"instances": instances}


def test_evaluator_scores_labelled_frames_and_class_0_only(dataset):
    evaluator = build_evaluator(get_cfg(), NAME, "unused")
    assert isinstance(evaluator, MissRateEvaluator)
    hit = output((TALL, 0.9, 0), (NOWHERE, 0.95, 1), ((320, 10, 360, 110), 0.8, 0))
    evaluator.process([dataset[0]], [hit])
    evaluator.process([dataset[1]], [None])
    evaluator.process([dataset[2]], [output()])
    result = evaluator.evaluate()
    assert set(result) == {"miss_rate"}
    rates = result["miss_rate"]
    assert rates["Reasonable"] == rates["Bare"] == pytest.approx(50)
    assert math.isnan(rates["Partial"]) and math.isnan(rates["Heavy"])
    evaluator.reset()
    evaluator.process([dataset[0]], [hit])
    assert evaluator.evaluate()["miss_rate"]["Reasonable"] == 0


def test_boxes_as_far_as_their_last_pixel(dataset):
    # 41 x 100 pixels of a person, and a box with half of its pixels, but for the last of them.
    x0, y0, x1, y1 = TALL
    barely = output(((x0, y0, x1, y0 + 50), 0.9, 0))
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    for to_last_pixel, missed in ((False, 0), (True, 100)):
        cfg.TEST.BLOCKCOPY.SCORE_TO_LAST_PIXEL = to_last_pixel
        evaluator = build_evaluator(cfg, NAME, "unused")
        evaluator.process([dataset[0]], [barely])
        assert evaluator.evaluate()["miss_rate"]["Reasonable"] == pytest.approx(missed)
    assert barely["instances"].pred_boxes.tensor.tolist() == [[x0, y0, x1, y0 + 50]]


def test_heavy_as_mgan_is_scored_leaves_out_persons_who_are_all_but_hidden():
    hidden, half = person(TALL, visibility=0.1), person(SHORT, visibility=0.5)
    frame = make_frame([hidden, half], [(SHORT, 0.9)])
    assert miss_rate(frame, setting=HEAVY) == pytest.approx(0.5)
    assert miss_rate(frame, setting=HEAVILY_OCCLUDED) == 0
    edge = make_frame([person(TALL, visibility=0.2)])
    assert miss_rate(edge, setting=HEAVILY_OCCLUDED) == 1


def test_a_config_names_the_miss_rates(dataset):
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    assert "HO" not in cfg.TEST.BLOCKCOPY.MISS_RATES
    for name in ("mgan_VGG_16_pedestron_blockcopy.yaml", "mgan_VGG_16_x1.3.yaml"):
        cfg = load_config(config_path(f"CityPersons/{name}"), ["MODEL.DEVICE", "cpu"])
        evaluator = build_evaluator(cfg, NAME, "unused")
        evaluator.process([dataset[0]], [output()])
        rates = evaluator.evaluate()["miss_rate"]
        assert list(rates) == ["Reasonable", "Bare", "Partial", "Heavy", "HO"]
    with pytest.raises(ValueError, match="MISS_RATES.*one of .*Heavy, HO"):
        load_config(None, ["TEST.BLOCKCOPY.MISS_RATES", "['heavy']"])


def test_evaluator_gathers_the_frames_of_all_ranks(dataset, monkeypatch):
    first, second = (MissRateEvaluator(NAME) for _ in range(2))
    first.process([dataset[0]], [output((TALL, 0.9, 0))])
    second.process([dataset[2]], [output()])
    monkeypatch.setattr(
        "detectron2.utils.comm.gather", lambda data: [first._predictions, second._predictions]
    )
    assert first.evaluate()["miss_rate"]["Reasonable"] == pytest.approx(50)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    assert second.evaluate() is None


def test_without_a_labelled_frame_there_is_no_score(dataset, caplog):
    result = MissRateEvaluator(NAME).evaluate()["miss_rate"]
    assert all(math.isnan(rate) for rate in result.values())
    assert "No labelled frame was processed" in caplog.text


@pytest.mark.parametrize(
    "image_ids, message",
    [
        (["frame0", "frame0"], "2 labelled frames of test_miss_rate have the image_id 'frame0'"),
        (["frame0", "frame1"], "1 frames of test_miss_rate .* no annotations, .* 'frame1'"),
    ],
)
def test_frames_that_cannot_be_told_apart_or_have_no_labels_are_refused(
    dataset, image_ids, message
):
    evaluator = MissRateEvaluator(NAME)
    for image_id in image_ids:
        evaluator.process([{"image_id": image_id}], [output()])
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate()
