"""A causal language model as one ONNX graph, with its key/value cache among the inputs and outputs."""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache, PreTrainedModel

from tuneprune.errors import TunePruneError

OnnxIr: TypeAlias = Any
"""An object of the optional package onnx_ir."""

BATCH, LENGTH, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {LENGTH}"
"""Names of the axes that vary, as other exporters name them."""

_SAMPLE = {BATCH: 2, LENGTH: 3, PAST: 4}  # none is 1 and no two are equal, or the trace would treat it as a constant
_CACHE = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")


def trace(model: PreTrainedModel) -> OnnxIr:
    """The graph, in the precision of the model.

    Its inputs are `input_ids` and `position_ids` [batch, length], `attention_mask` [batch, past + length] and for every
    layer `past_key_values.N.key` and `.value` [batch, KV heads, past, head dim], its outputs are `logits` [batch,
    length, vocabulary] and the longer `present.N.key` and `.value`. Batch, length and past may be any; past also 0.

    Raises:
        TunePruneError: the exporter cannot trace this model.
    """
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    if model._can_set_experts_implementation():  # other ones depend on the routers' choices, which a graph cannot
        model.set_experts_implementation("grouped_mm")
    inputs = _sample(model)
    free = torch.export.Dim.DYNAMIC
    caches = 2 * len(inputs["past_key_values"].layers)
    axes = {name: {0: free, 1: free} for name in inputs} | {"past_key_values": [{0: free, 2: free}] * caches}
    try:
        with _quiet():
            program = OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=axes)).program
    except Exception as error:  # the exporter, torch.export and torch.onnx raise many kinds
        raise TunePruneError(
            f"The ONNX exporter of transformers cannot trace this {model.config.model_type} model ({_reason(error)})."
            " Export it to another target; `tuneprune targets` lists them."
        ) from error
    _name(program.graph)
    return program


def save(program: OnnxIr, path: Path) -> None:
    """Write the graph to `path` and its weights, of any size, next to it to a file of the same name with `.data`."""
    from transformers.exporters.exporter_onnx import OnnxExporter

    OnnxExporter.save_program(program, path)


def interface(program: OnnxIr) -> dict[str, Any]:
    """Inputs and outputs by name with type and shape, where axes of variable size have a name instead of a number."""

    def described(values: OnnxIr) -> dict[str, dict[str, Any]]:
        return {
            value.name: {
                "dtype": value.dtype.numpy().name,
                "shape": [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape],
            }
            for value in values
        }

    return {"inputs": described(program.graph.inputs), "outputs": described(program.graph.outputs)}


def _sample(model: PreTrainedModel) -> dict[str, Any]:
    """Small arbitrary arguments of one step with a cache."""
    batch, length, past = _SAMPLE[BATCH], _SAMPLE[LENGTH], _SAMPLE[PAST]
    ids = torch.arange(batch * (past + length)).view(batch, -1) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        cache = model(input_ids=ids[:, :past], use_cache=True).past_key_values
    return {
        "input_ids": ids[:, past:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(past, past + length).expand(batch, -1).contiguous(),
        # sliding layers also keep every token: the window is a mask, as a graph cannot cut at a length
        "past_key_values": DynamicCache([(layer.keys, layer.values) for layer in cache.layers]),
    }


def _reason(error: BaseException) -> str:
    """The first line of the original error; the exporter's own errors only name the step."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress lines and version notes of the exporter, on which our users cannot act."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name(graph: OnnxIr) -> None:
    """Give inputs, outputs and their axes stable names, and remove what only the exporter needs.

    Shapes inside the graph are removed, as they use the exporter's own symbols (a runtime infers them). Notes at nodes
    are removed, as they contain paths of this machine.
    """
    boundary = [*graph.inputs, *graph.outputs]
    ids, cache = graph.inputs[0], next(value for value in graph.inputs if _CACHE.fullmatch(value.name))
    symbols = {str(ids.shape[0]): BATCH, str(ids.shape[1]): LENGTH, str(cache.shape[2]): PAST}
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in boundary:
                value.shape = None
    for value in boundary:
        value.metadata_props.clear()
        match = _CACHE.fullmatch(value.name)
        if match:
            name = "past_key_values" if match[1] == "input" else "present"
            value.name = f"{name}.{match[2]}.{match[3]}"
        value.shape = _shape(value, symbols)


def _shape(value: OnnxIr, symbols: Mapping[str, str]) -> OnnxIr:
    """The value's shape with the axes named as in `symbols`; those that are sums of two are `TOTAL`."""
    import onnx_ir

    if value.name == "attention_mask":
        return onnx_ir.Shape([BATCH, TOTAL])
    return onnx_ir.Shape([dim if isinstance(dim, int) else symbols.get(str(dim), TOTAL) for dim in value.shape])
