"""Collect what `benchmarks/gpu/run.py` needs on a machine without a network, in parts of a limited size.

    TUNEPRUNE_DATA=... python benchmarks/gpu/collect.py

Writes `out/gpu/load.tar.xz.1-of-2` and so on: wheels of the packages that such a machine lacks and of this checkout
(for its metadata: the code runs from `src`), SmolLM2 as a GGUF file, and the data sets of `runs/smollm2_medquad.yaml`.
Needs pip with a network, and some minutes to compress.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WHEELS = (
    *("annotated-types", "datasets", "defusedxml", "dill", "gguf", "multiprocess", "nltk", "peft", "pydantic"),
    *("pytest-socket", "typing-extensions", "typing-inspection"),
)
"""In the versions of constraints.txt; the one of pydantic-core is pydantic's own choice."""
SOURCES = ("rouge-score",)
"""Packages that the index has as source only."""
DATA = ("medquad", "openstax_anatomy")
PREFIX = "load.tar.xz"
PRESET = 6
"""Of xz: what the wheels and data lose in size is the difference between two parts and three."""


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"], check=True)


def fetch_wheels(folder: Path) -> None:
    """Wheels for the other machine's Python, whatever this one's is."""
    constraints = ["-c", str(ROOT / "constraints.txt")]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    target += [option for name in PLATFORMS for option in ("--platform", name)]
    pip("download", *target, *constraints, "--dest", str(folder), *WHEELS)
    pip("download", *target, "--dest", str(folder), f"pydantic-core=={core_version(folder)}")
    pip("wheel", *constraints, "--wheel-dir", str(folder), *SOURCES)
    pip("wheel", "--wheel-dir", str(folder), str(ROOT))


def core_version(folder: Path) -> str:
    """The version of pydantic-core that the fetched pydantic insists on."""
    from email.parser import Parser
    from zipfile import ZipFile

    path = next(folder.glob("pydantic-[0-9]*.whl"))
    with ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        needs = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist", [])
    return next(need.partition("==")[2] for need in needs if need.startswith("pydantic-core=="))


def pack(files: dict[str, Path], folder: Path, part_bytes: int) -> list[Path]:
    """Write files and folders, by their names on the other machine, as one archive in numbered parts.

    Args:
        part_bytes: size of the largest part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{PREFIX}.*"):
        old.unlink()
    whole = folder / PREFIX
    with tarfile.open(whole, "w:xz", preset=PRESET, dereference=True) as archive:
        for name, path in files.items():
            archive.add(path, name)
    count = -(-whole.stat().st_size // part_bytes)
    parts = [folder / f"{PREFIX}.{index + 1}-of-{count}" for index in range(count)]
    with whole.open("rb") as stream:
        for part in parts:
            part.write_bytes(stream.read(part_bytes))
    whole.unlink()
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part-mib", type=int, default=48, help="size of the largest part")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "out" / "models", help="where benchmarks/smollm2.py fetches to"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu")
    arguments = parser.parse_args()
    data = Path(os.environ.get("TUNEPRUNE_DATA", ""))
    missing = [name for name in DATA if not (data / name).is_dir()]
    if missing:
        raise SystemExit(f"Set TUNEPRUNE_DATA to a folder with {', '.join(missing)} (see docs/data.md).")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import smollm2

    model = smollm2.fetch(arguments.models)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory() as scratch:
        wheels, note = Path(scratch, "wheels"), Path(scratch, "collected.json")
        fetch_wheels(wheels)
        names = sorted(path.name for path in wheels.iterdir())
        note.write_text(json.dumps({"commit": commit.stdout.strip() or None, "wheels": names}, indent=1) + "\n")
        files = {"collected.json": note, "wheels": wheels, f"models/{model.name}": model}
        files |= {f"data/{path.name}": path for path in (data / name for name in DATA)}
        parts = pack(files, arguments.out, arguments.part_mib * 2**20)
    for part in parts:
        print(f"{part}  {part.stat().st_size / 2**20:.1f} MiB")
    shutil.rmtree(arguments.out / "load", ignore_errors=True)  # what an earlier archive was unpacked to


if __name__ == "__main__":
    main()
