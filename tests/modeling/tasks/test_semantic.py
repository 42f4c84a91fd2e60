"""Class probabilities as the policy sees them, and their information gain, by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from blockcopy_d2.modeling import ReleasedSemanticTask, SemanticTask

K = 3


def observe(logits, image_size, canvas_size, grid_shape):
    return SemanticTask(K).observe(
        {"sem_seg": logits}, image_size=image_size, canvas_size=canvas_size, grid_shape=grid_shape
    )


def test_probabilities_at_policy_resolution():
    # Blocks of 64 pixels: a policy pixel is the mean of 2x2 logits.
    logits = torch.randn(K, 128, 192)
    seen = observe(logits, (128, 192), (128, 192), (2, 3))
    assert seen.shape == (K, 64, 96)
    assert torch.allclose(seen.sum(0), torch.ones(64, 96))
    expected = logits[:, 2:4, 4:6].mean((1, 2)).softmax(0)
    torch.testing.assert_close(seen[:, 1, 2], expected)


def test_padding_has_no_class():
    # 99 x 181 pixels on a canvas of 128 x 192: the last policy pixels inside are half covered.
    logits = torch.ones(K, 99, 181) * torch.tensor([2.0, 0.0, -1.0])[:, None, None]
    seen = observe(logits, (99, 181), (128, 192), (2, 3))
    inside = torch.zeros(64, 96, dtype=torch.bool)
    inside[:50, :91] = True
    assert torch.equal(seen.sum(0) > 0, inside)
    expected = torch.tensor([2.0, 0.0, -1.0]).softmax(0)
    torch.testing.assert_close(seen[:, inside], expected[:, None].expand(-1, inside.sum()))


def test_output_of_another_size_shows_the_same_view():
    logits = torch.zeros(K, 256, 384)
    logits[1, :, 192:] = 9
    seen = observe(logits, (128, 192), (128, 192), (2, 3))
    assert seen[1, :, 49:].min() > 0.99 and seen[1, :, :47].max() < 0.34


@pytest.mark.parametrize(
    "before, after, gain",
    [
        ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25), 0),
        # KL of the new distribution from the old one, in nats
        ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25), 0.25 * math.log(0.5) + 0.5 * math.log(2)),
        (
            (0.9, 0.05, 0.05),
            (0.1, 0.8, 0.1),
            0.1 * math.log(1 / 9) + 0.8 * math.log(16) + 0.1 * math.log(2),
        ),
        (
            (0.1, 0.8, 0.1),
            (0.9, 0.05, 0.05),
            0.9 * math.log(9) + 0.05 * math.log(1 / 16) + 0.05 * math.log(0.5),
        ),
    ],
)
def test_block_gain_is_the_largest_divergence_in_the_block(before, after, gain):
    def seen(changed):
        logits = torch.tensor(before).log()[:, None, None].repeat(1, 64, 128)
        logits[:, 10:14, 70:74] = torch.tensor(changed).log()[:, None, None]
        return observe(logits, (64, 128), (64, 128), (1, 2))

    found = SemanticTask(K).block_gain(seen(after), seen(before), (1, 2))
    assert found.shape == (1, 2)
    assert found[0, 0] == 0
    assert float(found[0, 1]) == pytest.approx(gain, rel=1e-4, abs=1e-6)


def test_outputs_certain_of_different_classes_gain_a_finite_amount():
    certain = torch.zeros(K, 32, 32)
    certain[0] = 1
    gain = SemanticTask(K).block_gain(certain, certain.flip(0), (1, 1))
    assert torch.isfinite(gain).all() and gain > 10


def test_as_in_the_authors_code():
    """
    The policy sees logits; the gain is the result of the authors' kl_div, a mean over classes.
    """
    task, (before, after) = ReleasedSemanticTask(K), torch.randn(2, K, 64, 128)
    size = {"image_size": (64, 128), "canvas_size": (64, 128), "grid_shape": (1, 2)}
    seen = [task.observe({"sem_seg": logits}, **size) for logits in (before, after)]
    pooled = [F.avg_pool2d(logits, 2) for logits in (before, after)]
    torch.testing.assert_close(task.paint(seen[1]), pooled[1])
    log_previous, log_current = (x.log_softmax(0) for x in pooled)
    gain = F.kl_div(log_current, log_previous, reduction="none", log_target=True).mean(0)
    expected = gain.unflatten(1, (2, 32)).amax(dim=(0, 2))[None]
    torch.testing.assert_close(task.block_gain(seen[1], seen[0], (1, 2)), expected)
    assert not torch.allclose(task.block_gain(seen[0], seen[1], (1, 2)), expected)


def test_padding_of_the_authors_form_has_no_gain():
    task = ReleasedSemanticTask(K)
    size = {"image_size": (50, 100), "canvas_size": (64, 128), "grid_shape": (1, 2)}
    seen = [task.observe({"sem_seg": torch.randn(K, 50, 100)}, **size) for _ in range(2)]
    assert not seen[0][:, 25:].any()
    for x in seen:
        x[:, :25] = 0
    assert not task.block_gain(*seen, (1, 2)).any()
