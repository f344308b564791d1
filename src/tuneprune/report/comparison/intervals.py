"""Means over seeds with 95 % intervals, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence

from tuneprune.report.json_files import Section

LEVEL = 0.95


class Estimate(Section):
    """A mean over seeds with its 95 % Student-t interval; one seed has no interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    count: int = 1

    @classmethod
    def over(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from one or more values: mean ± t · s / √n, s the sample's standard deviation.

        Without an interval if a value is not finite.
        """
        count = len(values)
        mean = sum(values) / count
        if count == 1 or not all(map(math.isfinite, values)):
            return cls(mean=mean, count=count)
        reach = t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
        return cls(mean=mean, low=mean - reach, high=mean + reach, count=count)

    @property
    def reach(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval; False without one."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_quantile(freedom: int) -> float:
    """Where Student's t distribution with `freedom` degrees of freedom leaves 2.5 % above: 12.71, 4.30, 3.18, ..."""
    from scipy.stats import t  # slow to import, and only comparisons need it

    return float(t.ppf((1 + LEVEL) / 2, freedom))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """The mean of `values` - `others` over the seeds that both have; None without a common seed.

    Effects of a seed that both share, such as the order of the data, cancel out.
    """
    seeds = sorted(values.keys() & others.keys())
    return Estimate.over([values[seed] - others[seed] for seed in seeds]) if seeds else None
