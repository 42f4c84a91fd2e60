"""Measurements of the methods of a run."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("project")


def test_the_first_clip_of_several_is_not_timed():
    from blockcopy_protocol.loop import Measurement, MeasurementHook

    def trainer(index, seconds, macs):
        result = SimpleNamespace(
            frame=torch.zeros(1, 3, 2, 2),
            previous_detections=None,
            macs_per_stage={"network": macs},
        )
        timed = {"network": seconds}
        run = SimpleNamespace(result=result, macs=macs, seconds=lambda: timed)
        return SimpleNamespace(inputs={"frame_index": index}, runs={"dense": run}, waited=0.5)

    measurement = Measurement()
    hook = MeasurementHook({"dense": measurement}, include_loading=True)
    frames = [(0, 9.0, 2e9), (1, 3.0, 1e9), (0, 0.2, 2e9), (1, 0.1, 1e9), (0, 0.3, 3e9)]
    for number, frame in enumerate(frames):
        hook.trainer = trainer(*frame)
        hook.after_step()
        if number == 1:
            # A run of one clip is timed.
            assert measurement.summary()["ms_mean"] == pytest.approx(6500)
    found = measurement.summary()
    assert found["ms_mean"] == pytest.approx(1000 * (0.6 / 3 + 0.5))
    assert found["ms_median"] == pytest.approx(700)
    assert found["ms_per_stage"] == pytest.approx({"loading": 500, "network": 200})
    # Operations are of all frames.
    assert found["gmacs"] == pytest.approx(9 / 5) == found["gmacs_per_stage"]["network"]
