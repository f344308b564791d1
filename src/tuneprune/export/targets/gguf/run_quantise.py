"""A program for a fresh process: llama.cpp's own quantisation of a GGUF file.

Usage: python run_quantise.py FILE RESULT TARGET FTYPE, where TARGET is the GGUF file to write, FTYPE a number of
llama.cpp's `llama_ftype` and RESULT the JSON file to write, with llama-cpp-python's version as `engine`.
"""

import ctypes
import json
import os
import sys
from pathlib import Path


def main(file: str, result_file: str, target: str, ftype: str) -> None:
    """Quantise with llama.cpp's defaults, which leave norms and vectors in float32."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = int(ftype)
    if llama_cpp.llama_model_quantize(file.encode(), target.encode(), ctypes.pointer(settings)) != 0:
        sys.exit("llama.cpp refuses to quantise the file")
    Path(result_file).write_text(json.dumps({"engine": llama_cpp.__version__}), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
