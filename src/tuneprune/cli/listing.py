"""Commands that list the names a run file or an option can use."""

from typing import Annotated

import typer

from tuneprune.cli.display import first_line, print_list

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def targets(as_json: AsJson = False) -> None:
    """List the export targets besides the Hugging Face folder."""
    from tuneprune.export import registry

    extras = {name: f" (extra `{target.extra}`)" if target.extra else "" for name, target in registry().items()}
    print_list({name: target.title + extras[name] for name, target in registry().items()}, as_json)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods, and the presets of their options."""
    from tuneprune.methods import presets, registry

    listed = {
        name: f"{first_line(method.__doc__)} Spaces: {', '.join(method.spaces)}."
        f"{' Not on a quantised base.' if method.needs_weight_gradients else ''} {method.paper}"
        for name, method in registry().items()
    }
    for name, method in presets().items():
        fields = method.model_fields
        values = (f"{key}={value}" for key, value in method.presets[name].items() if value != fields[key].default)
        listed[name] = f"Preset of {method.name}: {', '.join(values)}"
    print_list(listed, as_json)


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the model families."""
    from tuneprune.families import registry

    print_list({name: first_line(family.__doc__) for name, family in registry().items()}, as_json)


@app.command()
def spaces(as_json: AsJson = False) -> None:
    """List the pruning spaces."""
    from tuneprune.structure.spaces import SPACES

    print_list({name: first_line(space.__doc__) for name, space in SPACES.items()}, as_json)


@app.command()
def suites(as_json: AsJson = False) -> None:
    """List the evaluation suites."""
    from tuneprune.data import SUITES

    print_list(
        {name: ", ".join(f"{t.name} ({t.metrics[0]})" for t in tasks) for name, tasks in SUITES.items()}, as_json
    )
