"""A program for a fresh process: llama.cpp's own quantisation of a GGUF file.

Usage: python run_quantise.py FILE RESULT FTYPE, where FTYPE is a number of llama.cpp's `llama_ftype`.
"""

import ctypes
import sys


def main(file: str, result: str, ftype: str) -> None:
    """Quantise with llama.cpp's defaults, which leave norms and vectors in float32."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = int(ftype)
    if llama_cpp.llama_model_quantize(file.encode(), result.encode(), ctypes.pointer(settings)) != 0:
        sys.exit("llama.cpp refused to quantise the file")


if __name__ == "__main__":
    main(*sys.argv[1:])
