"""A tiny model with LoRA, streams of made-up tokens, and the loop around them."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from helpers.tiny import layers_for, tiny_model
from tuneprune import families, methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.calibration.subject import Subject
from tuneprune.data import Encoded, Stream
from tuneprune.structure import spaces
from tuneprune.train import LoraOptions, TuneConfig, Tuner, inject_lora

ATP = {"name": "atp", "prior_batches": 2, "generator_size": 8, "generator_heads": 2, "generator_blocks": 1}


def documents(seed, count=24):
    """Documents of different lengths, the first third of each without a loss."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(4, 16, (), generator=draw))
        ids = torch.randint(3, 64, (length,), generator=draw).tolist()
        made.append(Encoded(ids, [-100] * (length // 3) + ids[length // 3 :]))
    return made


def stream(seed, batch_size=4):
    return Stream(documents(seed), batch_size=batch_size, max_length=16, pad_id=0, seed=seed)


@dataclass
class Setting:
    model: torch.nn.Module
    architecture: object
    space: object
    tuner: Tuner
    subject: Subject

    def begin(self, budget=None, **options):
        """An ATP search that goes on to the end of the tuning, unless `cut` is given."""
        return methods.build(ATP | {"cut": "end"} | options).begin(self.subject, budget or Budget())


def setting(folder, *, variant="llama", space_name="width", lora=True, rank=2, dropout=0.0, seed=0, **options):
    layers = {"num_hidden_layers": options.pop("num_hidden_layers")} if "num_hidden_layers" in options else {}
    variant = "mixtral" if space_name == "experts" else variant
    model = tiny_model(variant, dtype=torch.float32, **layers_for(space_name) | layers)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    if lora:
        inject_lora(model, architecture, LoraOptions(rank=rank, dropout=dropout), seed)
    config = TuneConfig(**{"steps": 6, "batch_size": 4, "learning_rate": 0.01, "log_every": 1} | options)
    accelerator = Accelerator(cpu=True)
    tuner = Tuner(model, stream(1), stream(2), config, folder, accelerator=accelerator, seed=seed, space=space)
    subject = Subject(model, architecture, space, tuner.runtime, tuner.next_calibration, config.steps, seed)
    return Setting(model, architecture, space, tuner, subject)


def trainable(model):
    """A copy of every trainable weight."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance:
            torch.testing.assert_close(other[name], value, **tolerance)
        else:
            assert torch.equal(other[name], value), name


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def within_one_unit(space, masks, budget):
    """At most the target, and not a whole step of the most expensive unit below it."""
    kept, target = count_parameters(space, masks), budget.target(space)
    whole = {group.name: group.size for group in space.groups}
    largest = max(space.count(whole) - space.count(whole | {g.name: g.size - 1}) for g in space.groups)
    return target - largest < kept <= target
