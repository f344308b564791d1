"""Injections of bad numbers into a tiny tuning or decision, at one place and time, and their outcomes."""

import json
from contextlib import contextmanager, nullcontext

from helpers.poison import bad_item, difference, flat, infected, passed_over, poison_activation, poisoned, state_of
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
"""Methods that take their own step on every calibration batch."""
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

LEFT_OUT = "left out, state unchanged"
OTHERS = "left out, decided by the rest"
UNUSED = "dropped with gradients of LoRA, which does not train then"
GOOD = {LEFT_OUT, OTHERS, UNUSED}


def begin(folder, name, method=(), **options):
    """A setting, and the search of a stateful method in it; `method` holds further options of the method."""
    made = setting(folder, space_name=SPACES.get(name, "width"), steps=STEPS, **options)
    base = ATP if name.startswith("atp") else {"name": name}
    return made, methods.build(base | STATEFUL[name] | dict(method)).begin(made.subject, Budget(keep=0.7))


def start(folder, name, step, **options):
    """The same after `step` good steps."""
    made, search = begin(folder, name, **options)
    made.tuner._build_optimizer(search)
    made.model.train()
    made.tuner.log.rewind(0)
    for _ in range(step):
        made.tuner._step(search)
    return made, search


def into_tuning(folder, name, kind, number, step):
    """Poison one tuning step and take all steps after it; returns the outcome."""
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
    """Put a bad item in the calibration batch of a generator's step and tune to the end; returns the outcome."""
    made, search = start(folder, name, step)
    search._logits()  # the prior draws first
    before = state_of(made, search)
    with bad_item(made, made.tuner.calibration_stream, number):
        before |= flat({"model": dict(made.model.named_parameters())})
        metrics = search.before_step(step)
    changed, origins = difference(before, state_of(made, search)), made.tuner.calibration_stream.last_origins()
    search.before_step = lambda _: metrics  # has run for this step
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
    """Put a bad item in a calibration batch of a generator's prior; the start has to be as without that batch."""
    made, search = begin(folder / "bad", name)
    with bad_item(made, made.tuner.calibration_stream, number, draw):
        search._logits()
    other, expected = begin(folder / "rest", name, {"prior_batches": STATEFUL[name].get("prior_batches", 2) - 1})
    with passed_over(other.tuner.calibration_stream, draw):
        expected._logits()
    known = [[one._scores, compensation_of(one)] for one in (search, expected)]
    return decided_without(made, other, *map(flat, known))


def compensation_of(search):
    """The moments of inputs, for a method that compensates."""
    found = getattr(search, "compensation", None)
    return None if found is None else found.moments


def into_period(folder, name, number, period):
    """Put a bad item in the calibration batch at the start of a period; the next batch has to decide."""
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
    """Check that one bad calibration batch was noted, and that the state is that of a run without the batch."""
    findings = made.tuner.findings()
    if findings["bad_numbers"] != {"calibration": 1} or other.tuner.health.counts:
        return f"noted as {findings['bad_numbers']}"
    if not findings["bad_examples"][0]["batch"]:
        return "noted without its records"
    changed = difference(found, expected)
    return f"changed {changed}" if changed else OTHERS


def decision(folder, options, *, batches, within):
    """The setting and masks of a one-shot method that decides inside a context."""
    made = setting(folder, space_name=SPACES.get(options["name"], "width"), lora=False, num_hidden_layers=4)
    with within(made):
        plan = methods.build(options | {"batches": batches}).begin(made.subject, Budget(keep=0.75)).plan()
    return made, plan.masks(made.space)


def into_decision(folder, options, kind, number, draw):
    """Spoil a calibration batch of a one-shot method; it has to decide as without that batch."""

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
    by_row = options.get("criterion") == "mix"  # its gradients are per row, so only one row is left out
    other, expected = decision(
        folder / "rest",
        options,
        batches=BATCHES - (not by_row),
        within=lambda made: passed_over(made.tuner.calibration_stream, draw, 0 if by_row else None),
    )
    return decided_without(made, other, masks, expected)


def outcome(injection, *arguments):
    """The outcome of an injection; an error is an outcome too."""
    try:
        return injection(*arguments)
    except (TunePruneError, ArithmeticError, RuntimeError, ValueError) as error:
        return f"ended: {type(error).__name__}: {error}"
