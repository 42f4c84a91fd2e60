"""Every kernel compiles for its GPUs, on a machine without one."""

import pytest

from tests.kernels.compiled import compiled_by

pytest.importorskip("triton")

BOXES = {"decode_kernel", "decode_proposals_kernel", "keep_kernel", "overlap_kernel"}
DETECTIONS = {"fill_kernel", "rank_kernel", "score_kernel"}
DETECTIONS |= {"dense_score_kernel"}
DETECTIONS |= {"anchor_keys_kernel", "collect_anchors_kernel", "count_digit_kernel"}
MASKS = {
    "mask_kernel",
    "paint_kernel",
    "paste_kernel",
    "roi_align_kernel",
    "sample_kernel",
    "taps_kernel",
}
KERNELS = BOXES | DETECTIONS | MASKS | {"clock_kernel"}


@pytest.mark.parametrize(
    "capability, dtypes",
    [(90, ["float16"]), pytest.param(80, ["bfloat16", "float32"], marks=pytest.mark.slow)],
)
def test_compiles(capability, dtypes):
    found = compiled_by("tests.modeling.fixed_shape.compiling", capability, *dtypes)
    assert {kernel["name"] for kernel in found} == KERNELS
