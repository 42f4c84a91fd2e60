import json

import pytest

from blockcopy_d2.evaluation.summary import (
    RunRecord,
    headline,
    summarize,
    summary_table,
    write_summary,
)


def record_of(*names):
    record = RunRecord(executed=[0.25, 0.35], clips=1)
    for name, seconds in zip(names, (0.1, 0.2, 0.4)):
        for _ in range(3):
            record.meter(name).add({"network": seconds}, macs=10**9)
    return record


SCORES = {
    "blockcopy": {"segm": {"AP": 44.0, "AP50": 60.0}},
    "dense": {"segm": {"AP": 45.0, "AP50": 61.0}},
}


def test_keys_of_the_summary():
    summary = summarize(record_of("blockcopy", "dense", "stock"), scores=SCORES, target=0.3)
    assert summary == {
        "dense": {"AP": 45.0, "AP50": 61.0, "gmacs": 1.0, "seconds_per_frame": pytest.approx(0.2)},
        "blockcopy": {
            "AP": 44.0,
            "AP50": 60.0,
            "gmacs": 1.0,
            "seconds_per_frame": pytest.approx(0.1),
        },
        "stock": {"seconds_per_frame": pytest.approx(0.4)},
        "executed_fraction": pytest.approx(0.3),
        "target": 0.3,
        "frames": 3,
        "clips": 1,
        "policy": {
            "gain_share": None,
            "gain_share_random": None,
            "gain_share_frame_difference": None,
            "gain_share_oracle": None,
        },
    }


def test_without_comparison_and_without_score(tmp_path):
    record = RunRecord(clips=1, failures=["Frame 3 of clip x cannot be used"])
    record.meter("blockcopy").add({"network": 0.1}, macs=1)
    scores = {"blockcopy": {"bbox": {"AP": float("nan")}}}
    summary = summarize(record, scores=scores, target=0.5)
    assert summary["dense"] is None and summary["stock"] is None
    assert summary["executed_fraction"] is None
    assert summary["failed_clips"] == record.failures
    write_summary(summary, str(tmp_path / "summary.json"))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == summary
    assert "Frame 3 of clip x" in summary_table(summary, record)


def test_table_shows_speed_next_to_stock():
    record = record_of("blockcopy", "dense", "stock")
    table = summary_table(summarize(record, scores=SCORES, target=0.3), record)
    (row,) = [line for line in table.splitlines() if "blockcopy" in line]
    assert "44.000" in row and "4.000" in row
    assert "network ms" in table and "0.300" in table


def test_records_of_ranks_merge():
    record, other = record_of("blockcopy"), record_of("blockcopy", "dense")
    record.merge(other)
    summary = summarize(record, scores={}, target=0.3)
    assert summary["frames"] == 6 and summary["clips"] == 2
    assert len(record.executed) == 4
    assert summary["blockcopy"]["AP"] is None


def test_semantic_segmentation_reports_its_own_metric():
    record = record_of("blockcopy")
    scores = {"blockcopy": {"sem_seg": {"IoU": 70.0, "iIoU": 50.0}}}
    summary = summarize(record, scores=scores, target=0.3)
    assert summary["blockcopy"]["mIoU"] == 70.0 and "AP" not in summary["blockcopy"]
    assert "mIoU" in summary_table(summary, record)


def test_miss_rates_of_all_settings():
    rates = {"Reasonable": 11.4, "Bare": 7.6, "Partial": 10.8, "Heavy": float("nan")}
    expected = {"MR": 11.4, "Bare": 7.6, "Partial": 10.8, "Heavy": None}
    assert headline({"miss_rate": rates}) == expected
    boxes = {"AP": 30.0, "AP50": 80.0, "APl": 40.0}
    shown = headline({"bbox": boxes, "miss_rate": {"Reasonable": 44.0}})
    assert shown == {"AP": 30.0, "AP50": 80.0, "MR": 44.0}
