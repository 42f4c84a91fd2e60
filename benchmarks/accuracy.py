"""Reads benchmarks/results/h200_policy_accuracy.json: runs of policies on data sets of video."""

import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass

from .measure import RESULTS

__all__ = ["Accuracy", "Mean"]

# Targets of runs differ by a few percent, so that one target has several runs.
_SHARES = (0.08, 0.15, 0.2, 0.25, 0.3, 0.33, 0.5, 1.0)
# Names of methods as revisions wrote them.
_METHODS = {
    r"MD( \S+)?, AGE_WEIGHT 0\.15( \S+)?": "MD",
    r"every ?3(rd moved)?": "every 3rd moved",
    "every3_in_place": "every 3rd in place",
    r"(EG )?prior ?\.?[0-9.]*": "EG prior",
    r"(EG|MD) ?\.?[0-9.]*": r"\1",
}


@dataclass(frozen=True)
class Mean:
    """
    Attributes:
        mean (float): mean over runs.
        deviation (float): standard deviation of the runs; 0 for one run.
        runs (int): number of runs.
    """

    mean: float
    deviation: float
    runs: int


class Accuracy:
    """Runs of a file of results, a dense one beside others in each."""

    def __init__(self, runs):
        """
        Args:
            runs (list[dict]): with "network", "revision", and "rows" of "method", "executed" and
                scores.
        """
        self.runs = runs

    @classmethod
    def of(cls, name):
        """
        Args:
            name (str): name of a file of benchmarks/results, without ".json".
        """
        return cls(json.loads((RESULTS / f"{name}.json").read_text())["runs"])

    def only(self, *revisions):
        """Accuracy: the runs of some revisions."""
        return Accuracy([run for run in self.runs if run["revision"] in revisions])

    def means(self, network, score, *, dense=True):
        """
        Args:
            network (str): data set and network.
            score (str): such as "AP".
            dense (bool): take the difference to the dense model of the same run.

        Returns:
            dict[tuple[str, float], Mean]: by method and executed share.

        Raises:
            ValueError: there is no such run.
        """
        values = defaultdict(list)
        for run in self.runs:
            if run["network"] != network:
                continue
            base = [row[score] for row in run["rows"] if row["method"] == "dense"]
            if not base:
                continue
            for row in run["rows"]:
                share = min(_SHARES, key=lambda share: abs(share - row["executed"]))
                value = row[score] - base[0] if dense else row[score]
                values[_method(row["method"]), share].append(value)
        if not values:
            raise ValueError(
                f"No run of {network!r}; there are {[x['network'] for x in self.runs]}."
            )
        return {
            key: Mean(
                statistics.fmean(of_key),
                statistics.stdev(of_key) if len(of_key) > 1 else 0.0,
                len(of_key),
            )
            for key, of_key in values.items()
        }


def _method(name):
    for pattern, method in _METHODS.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(method)
    return name
