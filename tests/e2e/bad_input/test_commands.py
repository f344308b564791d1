"""Commands other than `run` with arguments that cannot work."""

import pytest
import tiny_runs
from refusals import assert_refused


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["inspect", "{model}", "--space", "widht"], ["`widht`", "Did you mean `width`?"]),
        (["inspect", "./nowhere"], ["no folder"]),
        (["evaluate", "{model}", "--suite", "helthcare"], ["`helthcare`", "Did you mean `healthcare`?"]),
        (["evaluate", "./nowhere", "--suite", "clinic"], ["no folder"]),
        (["evaluate", "{model}", "--suite", "clinic", "--limit", "0"], ["`limit`", "greater than 0"]),
        (["report", "{out}"], ["no finished run", "--out"]),
        (["compress", "{model}", "--plan", "{out}", "--out", "{out}"], ["no readable plan"]),
        (
            ["compare", "{run}", "--methods", "atp,magnitud", "--out", "{out}"],
            ["`magnitud`", "Did you mean `magnitude`"],
        ),
        (["compare", "{run}", "--methods", "atp,atp", "--out", "{out}"], ["every method once"]),
        (["compare", "{run}", "--methods", "atp", "--seeds", "0,x", "--out", "{out}"], ["--seeds 0,x", "0,1,2"]),
        (["compare", "{run}", "--methods", "atp", "--seeds", "1,1", "--out", "{out}"], ["--seeds 1,1", "different"]),
        (
            ["compare", "{run}", "--methods", "atp,magnitude:sise=3", "--out", "{out}"],
            ["magnitude:sise=3", "no such option"],
        ),
        (["compare", "{run}", "--methods", "atp,magnitude:8", "--out", "{out}"], ["name:option=value", "`8`"]),
        (
            ["compare", "{run}", "--methods", "atp,random:space=widht", "--out", "{out}"],
            ["random:space=widht", "Did you mean `width`?"],
        ),
        (
            ["compare", "{run}", "--methods", "atp,random:space=disp", "--keep", "0.6,0.02", "--out", "{out}"],
            ["atp at keep 0.02", "reach"],
        ),
        (["compare", "{run}", "--methods", "atp", "--keep", "0.6,x", "--out", "{out}"], ["--keep 0.6,x", "0.8,0.6"]),
        (
            ["compare", "{run}", "--methods", "atp", "--keep", "0.6,1.2", "--out", "{out}"],
            ["--keep 0.6,1.2", "above 0"],
        ),
        (["compare", "{run}", "--methods", "atp", "--against", "flap", "--out", "{out}"], ["--against flap", "atp"]),
        (["compare", "{run}", "--methods", "atp", "--jobs", "0", "--out", "{out}"], ["--jobs 0"]),
        (
            ["compare", "{run}", "--methods", "atp", "--set", "budget.of=prunable", "--out", "{out}"],
            ["budget.of=total"],
        ),
        (
            ["compare", "{run}", "--methods", "atp", "--set", "recover.steps=3", "--out", "{out}"],
            ["recover", "tune.steps"],
        ),
        (["validate", "{run}", "--set", "budget.keep=0.01"], ["reach"]),
    ],
)
def test_other_commands(arguments, fragments, tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    out = tmp_path / "out"
    filled = [argument.format(model=model_folder, out=out, run=run_file) for argument in arguments]
    assert_refused(capsys, tuneprune(*filled), fragments)
    assert not out.exists()
