"""The flows behind the commands: run, compare, recover, and the stages of a run one at a time. Start at `run.py`."""
