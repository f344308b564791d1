"""Commands that list the names a run file or an option can use, from the sources of what they name."""

from importlib.metadata import entry_points
from typing import Annotated

import typer

from tuneprune.cli.display import first_line, print_list
from tuneprune.cli.source_file import PACKAGE, named_classes, read, source_of

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def targets(as_json: AsJson = False) -> None:
    """List the export targets besides the Hugging Face folder."""
    known = named_classes("export/targets", "Target")
    extras = {name: f" (extra `{target.extra}`)" if target.extra else "" for name, target in known.items()}
    print_list({name: target.title + extras[name] for name, target in known.items()}, as_json)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods, and the presets of their options."""
    if entry_points(group="tuneprune.methods"):  # those of other packages are only known when imported
        from tuneprune.methods import registry

        known = registry()
    else:
        known = named_classes("methods", "Method")
    listed = {
        name: f"{first_line(method.__doc__)} Spaces: {', '.join(method.spaces)}."
        f"{' Not on a quantised base.' if method.needs_weight_gradients else ''} {method.paper}"
        for name, method in known.items()
    }
    for method in known.values():
        fields = method.model_fields
        for name, options in method.presets.items():
            values = (f"{key}={value}" for key, value in options.items() if value != fields[key].default)
            listed[name] = f"Preset of {method.name}: {', '.join(values)}"
    print_list(listed, as_json)


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the model families."""
    files = [read(path) for path in sorted((PACKAGE / "families").glob("*.py"))]
    known = {kind: file for file in files if "MODEL_TYPES" in file.names for kind in file["MODEL_TYPES"]}
    print_list({kind: first_line(known[kind].__doc__) for kind in sorted(known)}, as_json)


@app.command()
def spaces(as_json: AsJson = False) -> None:
    """List the pruning spaces."""
    known = source_of("tuneprune.structure.spaces")["SPACES"]
    print_list({name: first_line(space.__doc__) for name, space in known.items()}, as_json)


@app.command()
def suites(as_json: AsJson = False) -> None:
    """List the evaluation suites."""
    from tuneprune.data import SUITES

    print_list(
        {name: ", ".join(f"{t.name} ({t.metrics[0]})" for t in tasks) for name, tasks in SUITES.items()}, as_json
    )
