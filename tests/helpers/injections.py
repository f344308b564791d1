"""Bad numbers put into a tiny tuning or decision on purpose, at one place and time, and what became of them."""

import json
from contextlib import contextmanager, nullcontext

import torch

from helpers.tiny_tuning import ATP, setting
from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.errors import TunePruneError

STATEFUL = {
    "atp": {"control_limit": None},
    "atp-sampled": {"decisions": "sampled", "regulariser": "lasso", "compensate": False},
    "loraprune": {"every": 1},
    "apt": {"every": 1},
    "hesso": {"periods": 2},
    "pat": {},
    "disp_llm": {},
    "tomoe": {"prior_batches": 2, "generator_size": 8},
}
GENERATORS = ("atp", "atp-sampled", "tomoe")
"""Methods that take a step of their own on every calibration batch."""
ONE_SHOT = [
    {"name": "flap"},
    {"name": "cfsp"},
    {"name": "wanda_sp"},
    {"name": "wanda_sp", "sequential": True},
    {"name": "minitron"},
    {"name": "llm_pruner"},
    {"name": "llm_pruner", "criterion": "mix"},
    {"name": "short"},
    {"name": "short", "contiguous": True},
    {"name": "slicegpt"},
    {"name": "slicegpt", "variant": "skip"},
]
SPACES = {"pat": "residual", "disp_llm": "disp", "tomoe": "head_dim", "short": "depth", "slicegpt": "residual"}
STEPS = 8
BATCHES = 3
"""Calibration batches of a one-shot method."""
KINDS = ("loss", "gradient", "activation", "data item")
TOKEN = 1
"""No made-up document has it."""

LEFT_OUT = "left out, state unchanged"
OTHERS = "left out, decided by the rest"
UNUSED = "dropped with gradients of LoRA, which does not train then"
GOOD = {LEFT_OUT, OTHERS, UNUSED}


def begin(folder, name, method=(), **options):
    """A setting, and the search of a method with state in it; `method` are further options of the method's."""
    made = setting(folder, space_name=SPACES.get(name, "width"), steps=STEPS, **options)
    base = ATP if name.startswith("atp") else {"name": name}
    return made, methods.build(base | STATEFUL[name] | dict(method)).begin(made.subject, Budget(keep=0.7))


def start(folder, name, step, **options):
    """The same behind so many good steps."""
    made, search = begin(folder, name, **options)
    made.tuner._build_optimizer(search)
    made.model.train()
    made.tuner.log.rewind(0)
    for _ in range(step):
        made.tuner._step(search)
    return made, search


def flat(value, path=""):
    """Every tensor and number of nested state, by where it is."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), path)
    return {path: value.detach().clone() if isinstance(value, torch.Tensor) else value}


def state_of(made, search):
    """All weights, the optimiser and the search's own state, its random streams apart."""
    own = {name: value for name, value in search.state_dict().items() if name not in ("noise", "random", "step")}
    parameters = dict(made.model.named_parameters())
    state = flat({"model": parameters, "optimizer": made.tuner.optimizer.state_dict()["state"], "search": own})
    return {name: value for name, value in state.items() if not name.endswith("/skipped")}  # only counts


def difference(one, other):
    """The first thing that two states do not have alike, or nothing."""
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
    """Where something that is trained or remembered is not finite, or nothing."""
    fixed = {f"/model/{name}" for name, weight in made.model.named_parameters() if not weight.requires_grad}
    for name, value in state_of(made, search).items():
        numbers = torch.as_tensor(value if isinstance(value, float | torch.Tensor) else 0)
        if name not in fixed and not torch.isfinite(numbers).all():
            return name
    return ""


@contextmanager
def poisoned_loss(made, number, when):
    """The losses of the calls that `when` names, by number, become `number`, with gradients alike."""
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
    """What leaves a block becomes `number` in the forwards that `when` names, by number."""
    layer, calls = made.model.get_submodule(made.architecture.blocks[block].path), []

    def change(_, __, output):
        calls.append(1)
        factor = number if when(len(calls) - 1) else 1.0
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    return layer.register_forward_hook(change)


@contextmanager
def poisoned(made, kind, number):
    """Forward and backward inside give bad numbers of one kind; a data item does so by itself."""
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
    """A batch that the stream draws inside, by number, has a token whose embedding is broken; no other data has it."""
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
    """A batch that the stream draws inside, by number, is drawn for nothing, or comes without one of its rows."""
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


def into_tuning(folder, name, kind, number, step):
    """One poisoned tuning step, and all the others behind it; what became of it."""
    made, search = start(folder, name, step)
    before, entered = [], search.context

    @contextmanager
    def context():
        with entered():
            before.append(state_of(made, search))
            with poisoned(made, kind, number):
                yield

    search.context = context
    with bad_item(made, made.tuner.train_stream, number) if kind == "data item" else nullcontext():
        made.tuner._step(search)
    search.context = entered
    after, origins, is_unused = state_of(made, search), made.tuner.train_stream.last_origins(), not search.trains_lora
    is_unused = is_unused and kind == "gradient"
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    noted = [(bad["what"].partition(" ")[0], bad["batch"]) for bad in line.get("bad", [])]
    expected = [] if is_unused else [("gradient" if kind == "gradient" else "loss", origins)]
    while made.tuner.result.steps < STEPS:
        made.tuner._step(search)
    found = infected(made, search)
    search.plan()
    if found:
        return f"reached {found}"
    if line["step"] != step + 1 or noted != expected or made.tuner.result.skipped_steps != len(expected):
        return f"noted as {noted}"
    changed = "" if is_unused else difference(before[0], after)
    return f"changed {changed}" if changed else UNUSED if is_unused else LEFT_OUT


def into_calibration(folder, name, number, step):
    """A bad item in the calibration batch of a generator's step, and the tuning behind it; what became of it."""
    made, search = start(folder, name, step)
    search._logits()  # the prior draws first
    before = state_of(made, search)
    with bad_item(made, made.tuner.calibration_stream, number):
        before |= flat({"model": dict(made.model.named_parameters())})
        metrics = search.before_step(step)
    changed, origins = difference(before, state_of(made, search)), made.tuner.calibration_stream.last_origins()
    search.before_step = lambda _: metrics  # that was this step's
    made.tuner._step(search)
    del search.before_step
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    while made.tuner.result.steps < STEPS:
        made.tuner._step(search)
    found = infected(made, search)
    search.plan()
    if found or changed:
        return f"reached {found}" if found else f"changed {changed}"
    is_noted = line.get("bad") == [{"what": "calibration", "batch": origins}] and line["generator_skipped"] == 1
    return LEFT_OUT if is_noted and line["skipped_steps"] == 0 else f"noted as {line.get('bad')}"


def into_prior(folder, name, number, draw):
    """A bad item in a calibration batch of a generator's prior; whether it starts as if that had not been drawn."""
    made, search = begin(folder / "bad", name)
    with bad_item(made, made.tuner.calibration_stream, number, draw):
        search._logits()
    other, expected = begin(folder / "rest", name, {"prior_batches": STATEFUL[name].get("prior_batches", 2) - 1})
    with passed_over(other.tuner.calibration_stream, draw):
        expected._logits()
    known = [[one._scores, compensation_of(one)] for one in (search, expected)]
    return decided_without(made, other, *map(flat, known))


def compensation_of(search):
    """The moments of inputs, of a method that compensates."""
    found = getattr(search, "compensation", None)
    return None if found is None else found.moments


def into_period(folder, name, number, period):
    """A bad item in the calibration batch at the start of a period; whether the next batch decides."""
    made, search = begin(folder / "bad", name)
    other, expected = begin(folder / "rest", name)
    for one, own in ((made, search), (other, expected)):
        one.tuner._build_optimizer(own)
        for index in range(period):
            own.before_step(own.bounds[index])
    with bad_item(made, made.tuner.calibration_stream, number):
        search.before_step(search.bounds[period])
    with passed_over(other.tuner.calibration_stream, 0):
        expected.before_step(expected.bounds[period])
    return decided_without(made, other, *(flat(one.state_dict()) for one in (search, expected)))


def decided_without(made, other, found, expected):
    """Whether one bad calibration batch was met and noted, and what it left is as in a run that has not met it."""
    findings = made.tuner.findings()
    if findings["bad_numbers"] != {"calibration": 1} or other.tuner.health.counts:
        return f"noted as {findings['bad_numbers']}"
    if not findings["bad_examples"][0]["batch"]:
        return "noted without its records"
    changed = difference(found, expected)
    return f"changed {changed}" if changed else OTHERS


def decision(folder, options, *, batches, within):
    """The masks of a one-shot method, decided inside a context, and how often bad numbers were met."""
    made = setting(folder, space_name=SPACES.get(options["name"], "width"), lora=False, num_hidden_layers=4)
    with within(made):
        plan = methods.build(options | {"batches": batches}).begin(made.subject, Budget(keep=0.75)).plan()
    return made, plan.masks(made.space)


def into_decision(folder, options, kind, number, draw):
    """One bad calibration batch of a one-shot method; whether it decides as if it had never been drawn."""

    @contextmanager
    def broken(made):
        if kind == "data item":
            with bad_item(made, made.tuner.calibration_stream, number, draw):
                yield
            return
        handle = poison_activation(made, number, lambda call: call == draw, block=-1)
        yield
        handle.remove()

    made, masks = decision(folder / "bad", options, batches=BATCHES, within=broken)
    by_row = options.get("criterion") == "mix"  # its gradients are, and only one row is left out
    other, expected = decision(
        folder / "rest",
        options,
        batches=BATCHES - (not by_row),
        within=lambda made: passed_over(made.tuner.calibration_stream, draw, 0 if by_row else None),
    )
    return decided_without(made, other, masks, expected)


def outcome(injection, *arguments):
    """What became of an injection, an end by an error among it."""
    try:
        return injection(*arguments)
    except (TunePruneError, ArithmeticError, RuntimeError, ValueError) as error:
        return f"ended: {type(error).__name__}: {error}"
