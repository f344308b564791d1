"""Made-up latency tables."""

from dataclasses import replace

from tuneprune.budget.latency_table import Curve, LatencyTable, shapes_of


def table_for(space, **changes):
    """A KV group takes 1 ms, an MLP channel 0.1 ms, the rest of a layer 0.5 ms and that of the model 4 ms."""
    facts = {
        "model": shapes_of(space),
        "engine": "made up",
        "phase": "decode",
        "batch_size": 1,
        "prompt_tokens": 8,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "fixed_ms": 4.0,
        "layer_ms": 0.5,
        "attention": Curve(units=[1, 4], milliseconds=[1.0, 4.0]),
        "mlp": Curve(units=[8, 48], milliseconds=[0.8, 4.8]),
    }
    return LatencyTable(**facts | changes)


def timed(space, **changes):
    """The space with made-up times."""
    return replace(space, latency=table_for(space, **changes).on(space))
