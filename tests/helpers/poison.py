"""Ways to put bad numbers into a tiny tuning, and the comparison of its states."""

from contextlib import contextmanager

import torch

TOKEN = 1
"""No made-up document has it."""


def flat(value, path=""):
    """Every tensor and number of a nested state, by its path."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), path)
    return {path: value.detach().clone() if isinstance(value, torch.Tensor) else value}


def state_of(made, search):
    """All weights, the optimiser and the search's own state, without its random state."""
    own = {name: value for name, value in search.state_dict().items() if name not in ("noise", "random", "step")}
    parameters = dict(made.model.named_parameters())
    state = flat({"model": parameters, "optimizer": made.tuner.optimizer.state_dict()["state"], "search": own})
    return {name: value for name, value in state.items() if not name.endswith("/skipped")}  # a counter


def difference(one, other):
    """The path of the first difference between two states, or an empty string."""
    for name in [*one, *other]:
        if name not in one or name not in other or not _alike(one[name], other[name]):
            return name
    return ""


def _alike(one, other):
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other) and one == other
    same_numbers = torch.isclose(one, other, rtol=0, atol=0, equal_nan=True) if one.shape == other.shape else None
    return one.dtype == other.dtype and same_numbers is not None and bool(same_numbers.all())


def infected(made, search):
    """The path of the first trained or saved value that is not finite, or an empty string."""
    fixed = {f"/model/{name}" for name, weight in made.model.named_parameters() if not weight.requires_grad}
    for name, value in state_of(made, search).items():
        numbers = torch.as_tensor(value if isinstance(value, float | torch.Tensor) else 0)
        if name not in fixed and not torch.isfinite(numbers).all():
            return name
    return ""


@contextmanager
def poisoned_loss(made, number, when):
    """Multiply the losses of the calls that `when` chooses, and so their gradients, by `number`."""
    runtime, calls = made.tuner.runtime, []
    original = runtime.summed_loss

    def summed_loss(batch, **options):
        calls.append(batch)
        loss = original(batch, **options)
        return loss * number if when(len(calls) - 1) else loss

    runtime.summed_loss = summed_loss
    yield
    runtime.summed_loss = original


def poison_gradient(made, number):
    weight = next(p for p in made.model.parameters() if p.requires_grad)
    return weight.register_hook(lambda gradient: gradient * number)


def poison_activation(made, number, when=lambda _: True, block=1):
    """Multiply the output of a block by `number` in the forwards that `when` chooses."""
    layer, calls = made.model.get_submodule(made.architecture.blocks[block].path), []

    def change(_, __, output):
        calls.append(1)
        factor = number if when(len(calls) - 1) else 1.0
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    return layer.register_forward_hook(change)


@contextmanager
def poisoned(made, kind, number):
    """Inside, forward and backward give bad numbers of one kind; nothing is changed for a data item."""
    if kind == "loss":
        with poisoned_loss(made, number, lambda _: True):
            yield
        return
    handle = {"gradient": poison_gradient, "activation": poison_activation}.get(kind, lambda *_: None)(made, number)
    yield
    if handle is not None:
        handle.remove()


@contextmanager
def bad_item(made, stream, number, draw=0):
    """Inside, the stream's batch number `draw` has a token with a broken embedding, which no other data has."""
    original, draws = stream.next, []

    def give():
        batch = original()
        if len(draws) == draw:
            batch["input_ids"][0, 0] = TOKEN
        draws.append(1)
        return batch

    stream.next = give
    with torch.no_grad():
        made.model.get_input_embeddings().weight[TOKEN] = number
    yield
    stream.next = original


@contextmanager
def passed_over(stream, draw, row=None):
    """Inside, the stream's batch number `draw` is skipped, or comes without one of its rows."""
    original, draws = stream.next, []

    def give():
        batch = original()
        draws.append(1)
        if len(draws) - 1 != draw:
            return batch
        return original() if row is None else {k: torch.cat([v[:row], v[row + 1 :]]) for k, v in batch.items()}

    stream.next = give
    yield
    stream.next = original
