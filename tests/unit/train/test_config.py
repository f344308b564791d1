import pytest

from tuneprune.train.config import TuneConfig


def rates(**options):
    config = TuneConfig(**options)
    return [config.learning_rate_at(step) for step in range(config.steps)]


def test_by_hand():
    # two steps of warm-up, then cos(0), cos(pi/4), cos(pi/2), cos(3 pi/4) between 1 and 0.1
    found = rates(steps=6, learning_rate=1.0, warmup_share=1 / 3, final_learning_rate_share=0.1)
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.1 + 0.45 * 1.7071068, 0.55, 0.1 + 0.45 * 0.2928932])


def test_no_warmup_starts_at_the_peak():
    found = rates(steps=10, learning_rate=0.02, warmup_share=0)
    assert found[0] == 0.02
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0.002


def test_single_step():
    assert rates(steps=1, learning_rate=0.5) == [0.5]


def test_constant():
    assert rates(steps=5, learning_rate=0.5, warmup_share=0, final_learning_rate_share=1) == [0.5] * 5


@pytest.mark.parametrize("first", [0, 1, 4, 10, 19])
def test_rate_after_the_cut_rises_to_the_schedule_of_the_whole_run(first):
    options = {"steps": 20, "learning_rate": 0.5, "warmup_share": 0.15, "final_learning_rate_share": 0.2}
    config, whole = TuneConfig(**options), rates(**options)
    after = [config.learning_rate_at(step, first) for step in range(first, 20)]
    shares = [rate / whole[step] for step, rate in enumerate(after, start=first)]
    if first >= 3:  # three steps of warm-up, which the run has behind it by then
        assert shares == pytest.approx([1 / 3, 2 / 3, *[1.0] * (18 - first)][: 20 - first])
    else:
        assert all(rate <= whole[step] for step, rate in enumerate(after, start=first))
    assert after[3:] == whole[first + 3 :]
