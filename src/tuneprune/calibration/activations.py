"""Scores from the inputs of linears on calibration data, shared by methods: larger is more worth keeping."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from tuneprune.calibration import statistics
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import FiniteSums
from tuneprune.calibration.statistics import Statistics
from tuneprune.calibration.subject import Subject
from tuneprune.structure.space import Gate, Group
from tuneprune.structure.weights import effective_weight


def consumer(group: Group) -> Gate:
    """The gate at which units are read: the input of attention's output projection, or of the MLP's last linear."""
    return next(gate for gate in group.gates if gate.side == "input")


def consumer_statistics(subject: Subject, batches: int) -> dict[str, Statistics]:
    """Statistics of the input of every group's consumer in the dense model, over the next calibration batches.

    One forward pass, no gradients. In a comparison all methods and budgets with the same number of batches share it.
    """

    def compute() -> dict[str, Tensor]:
        found = gather(subject, [subject.calibration() for _ in range(batches)])
        return {f"{path}/{name}": value for path, one in found.items() for name, value in one.tensors().items()}

    sums: dict[str, dict[str, Tensor]] = {}
    for key, value in subject.scores("inputs", compute, batches=batches).items():
        path, _, name = key.rpartition("/")
        sums.setdefault(path, {})[name] = value
    return {path: Statistics(**mine) for path, mine in sums.items()}


def gather(subject: Subject, batches: Iterable[Batch], sums: FiniteSums | None = None) -> dict[str, Statistics]:
    """Statistics of every group's consumer over given batches, on the CPU; callers can add other sums to `sums`."""
    gates = (gate for group in subject.space.groups for gate in group.gates)
    modules = dict.fromkeys(gate.module for gate in gates if gate.side == "input")
    runtime = subject.runtime
    sums = FiniteSums(runtime.accepts) if sums is None else sums
    found = statistics.input_statistics(subject.model, modules, batches, runtime.loss, runtime.average, sums=sums)
    return {
        path: Statistics(**{name: value.cpu() for name, value in one.tensors().items()}) for path, one in found.items()
    }


def per_unit(features: Float[Tensor, " inputs"], group: Group) -> Float[Tensor, "units features"]:
    """Values of a consumer's input features, by the unit that they belong to.

    A KV group has those of all query heads that read it. (The code of FLAP and Wanda-sp takes one head as a unit, which
    is only right if every head has its own keys and values.)
    """
    return consumer(group).segment.by_unit(features)


def consumer_weight(subject: Subject, group: Group) -> Float[Tensor, "outputs inputs"]:
    """The weight that reads the group's units, float64 on the CPU."""
    return effective_weight(subject.model, f"{consumer(group).module}.weight").detach().double().cpu()


def wanda(subject: Subject, group: Group, found: Statistics) -> Float[Tensor, " inputs"]:
    """Mean over outputs i of |W_ij| ||x_j||_2, of every input feature j of the group's consumer (Wanda)."""
    return consumer_weight(subject, group).abs().mean(0) * found.norm.cpu()


def standardised(values: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1; zeros if all are equal."""
    centred = values - values.mean()
    deviation = centred.pow(2).mean().sqrt()
    return centred / deviation if deviation > 0 else centred
