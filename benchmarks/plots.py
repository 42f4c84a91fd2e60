"""The picture beside each result: time against executed share, with the ideal line."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from blockcopy_d2.atomic import atomic_write  # noqa: E402

__all__ = ["plot_shares"]


def plot_shares(path, medians, dense, *, title):
    """
    Args:
        path (Path): of the PNG.
        medians (dict[str, float]): milliseconds by executed share.
        dense (float): milliseconds of the best dense network.
        title (str):
    """
    shares = sorted(map(float, medians))
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    axes.plot(shares, [medians[str(s)] for s in shares], "o-", label="BlockCopy, with policy")
    axes.axhline(dense, color="black", linestyle="--", label="best dense")
    axes.plot([0, 1], [0, dense], color="gray", linestyle=":", label="dense time x share")
    axes.set(xlabel="executed share", ylabel="ms per frame", title=title, xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
