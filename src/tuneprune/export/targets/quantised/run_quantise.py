"""A program for a fresh process: loads a float model, quantises it while it loads, and saves it.

Usage: python run_quantise.py FOLDER RESULT OUT SETTINGS TRUST, where SETTINGS is JSON: `library` (`bitsandbytes` or
`torchao`), `options` of its configuration, and in `keep` the modules to leave as they are; TRUST is 1 where FOLDER
needs its own code.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

Configuration: TypeAlias = Any
"""Of either library; transformers is imported late."""


def configuration(library: str, options: dict[str, Any], keep: list[str]) -> Configuration:
    """The configuration that transformers passes to the library."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if library == "bitsandbytes":
        return BitsAndBytesConfig(llm_int8_skip_modules=keep, **options)
    config = getattr(import_module("torchao.quantization"), options["config"])
    return TorchAoConfig(config(), modules_to_not_convert=keep)


def main(folder: str, result_file: str, out: str, settings: str, trust: str) -> None:
    """Load, which quantises, and save."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=configuration(**json.loads(settings)),
        trust_remote_code=trust == "1",
        use_safetensors=True,
        dtype="auto",
    )
    model.save_pretrained(out)
    Path(result_file).write_text("{}", encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
