"""The cost of a frame: executed multiply-accumulates, and seconds."""

from blockcopy_d2.modeling import MacCounter

__all__ = ["EfficiencyMeter", "MacCounter"]


class EfficiencyMeter:
    """Averages, over the frames of a run, of seconds per stage and multiply-accumulates."""

    def __init__(self):
        self.frames = 0
        self.macs = 0
        self.seconds = {}

    def add(self, seconds, macs):
        """
        Args:
            seconds (dict[str, float]): seconds of one frame, per stage.
            macs (int):
        """
        self.frames += 1
        self.macs += macs
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def merge(self, other):
        """Add the measurements of another process."""
        self.frames += other.frames
        self.macs += other.macs
        for stage, value in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    @property
    def gmacs(self):
        """float: 1e9 multiply-accumulates per frame."""
        return self.macs / self.frames / 1e9

    @property
    def seconds_per_stage(self):
        """dict[str, float]: seconds per frame, averaged over all frames."""
        return {stage: value / self.frames for stage, value in self.seconds.items()}

    @property
    def seconds_per_frame(self):
        """float:"""
        return sum(self.seconds.values()) / self.frames
