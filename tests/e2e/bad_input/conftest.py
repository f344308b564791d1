import pytest
from refusals import Case, assert_refused


@pytest.fixture
def refuses_run(tmp_path, model_folder, tuneprune, capsys, monkeypatch):
    """Runs a run file after a change, and checks that it is refused in these words with nothing written."""
    monkeypatch.delenv("TUNEPRUNE_DATA", raising=False)

    def check(change, fragments):
        case = Case(tmp_path, model_folder)
        change(case)
        if isinstance(case.content["model"], dict):
            case.content["model"]["base"] = case.content["model"]["base"] or str(model_folder)
        assert_refused(capsys, tuneprune("run", case.run_file(), "--out", tmp_path / "out"), fragments)
        assert not (tmp_path / "out").exists()

    return check
