"""
Blocks that must run regardless of the policy, so that features do not grow old.

Shape shorthand: N streams, GH x GW blocks, R = GH GW.
"""

import torch

__all__ = ["due_for_refresh"]


def due_for_refresh(active, age, period):
    """
    Pick blocks to execute besides those of the policy, so that every block runs at least once in
    ``period`` consecutive frames, with at most ceil(R / period) of them per frame.

    The oldest come first. A frame refreshes none if the rest can still keep their deadlines when
    it starts with the next frame, i.e. if age + 1 + floor(rank / ceil(R / period)) <= period for
    all blocks, ranked by age. So blocks that the policy executes are not executed twice, and blocks
    that all ran in one frame, such as the first of a video, come up again spread over ``period``
    frames, in their order in the picture.

    Args:
        active (Tensor): bool (N, GH, GW), the blocks this frame executes already.
        age (Tensor): int (N, GH, GW), frames since each block was executed, counted up to the last
            frame.
        period (int): at least 1, and the same in all frames of a stream. After a change to a
            smaller one, more blocks may be overdue than a frame may refresh.

    Returns:
        Tensor: bool (N, GH, GW), without blocks of ``active``. The host never waits.
    """
    blocks = active[0].numel()
    per_frame = -(-blocks // period)
    age_after = torch.where(active, 0, age + 1).flatten(1)
    ranked, order = age_after.sort(dim=1, descending=True, stable=True)
    waiting = torch.arange(blocks, device=active.device) // per_frame
    must_start = (ranked + waiting >= period).any(dim=1, keepdim=True)
    oldest = torch.zeros_like(active).flatten(1)
    oldest.scatter_(1, order[:, :per_frame], must_start.expand(-1, per_frame))
    return oldest.view_as(active) & ~active
