"""The learning rate over a tuning."""

import math

from tuneprune.train.config import TuneConfig


def learning_rate(config: TuneConfig, step: int) -> float:
    """The rate of step `step`, counted from 0: linear warm-up to the peak, then a cosine to its final share."""
    peak, floor = config.learning_rate, config.final_learning_rate_share
    warmup = max(1, round(config.warmup_share * config.steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
