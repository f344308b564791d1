"""The settings that benchmarks/atp_search.py tries, by name: changes to ATP's options, and baselines."""

from typing import Any

CALIBRATION = "calibration_documents"
"""An option of trials, not of ATP: how many documents are used for calibration, if not all."""
START = {  # the defaults when the search began; the settings below are named by their changes to them
    "name": "atp",
    "decision": "dynamic",
    "decisions": "on_budget",
    "prior": "taylor",
    "prior_batches": 16,
    "prior_momentum": 0.9,
    "prior_scale": 1.0,
    "generator": "transformer",
    "generator_learning_rate": 1e-3,
    "control_share": 0.25,
    "control_limit": None,
    "gradual": True,
    "decision_every": 1,
    "temperature": 0.4,
    "lora_aware": True,
    "regulariser": "linear_decay",
    "decay_share": 0.5,
    "compensate": False,
    "cut": "end",
}
STATIC = START | {"control_share": 0.0, "generator": "free", "lora_aware": False, "regulariser": "none"}
SAMPLED = {"decisions": "sampled", "prior": "none", "regulariser": "lasso", "control_share": 0.5}
MASKED = {"lora_aware": False, "regulariser": "none"}
COMPENSATED = {"compensate": True}
LIMITED = {"control_share": 0.5, "control_limit": 30}
CHANGES: dict[str, dict[str, Any]] = {
    "start": {},
    "masked-lora": MASKED,
    "static-decision": {"decision": "static"},
    "control-0.1": {"control_share": 0.1},
    "control-0.5": {"control_share": 0.5},
    "prior-none": {"prior": "none"},
    "prior-magnitude": {"prior": "magnitude"},
    "prior-batches-4": {"prior_batches": 4},
    "prior-batches-64": {"prior_batches": 64},
    "momentum-0.5": {"prior_momentum": 0.5},
    "momentum-1": {"prior_momentum": 1.0},
    "generator-free": {"generator": "free"},
    "generator-lr-1e-2": {"generator_learning_rate": 1e-2},
    "generator-lr-1e-4": {"generator_learning_rate": 1e-4},
    "not-gradual": {"gradual": False},
    "every-4": {"decision_every": 4},
    "temperature-0.1": {"temperature": 0.1},
    "temperature-1": {"temperature": 1.0},
    "lasso": {"regulariser": "lasso"},
    "proximal": {"regulariser": "proximal"},
    "no-regulariser": {"regulariser": "none"},
    "decay-0.2": {"decay_share": 0.2},
    "decay-1": {"decay_share": 1.0},
    "calibration-16": {CALIBRATION: 16},
    "calibration-128": {CALIBRATION: 128},
    "sampled": SAMPLED,
    "sampled-alpha-1": SAMPLED | {"budget_weight": 1.0},
    "sampled-alpha-10": SAMPLED | {"budget_weight": 10.0},
    "sampled-beta-0.03": SAMPLED | {"lasso_weight": 0.03},
    "sampled-decay": SAMPLED | {"regulariser": "linear_decay"},
    "sampled-prior": SAMPLED | {"prior": "taylor"},
    "compensate": COMPENSATED,
    "compensate-masked": COMPENSATED | MASKED,
    "compensate-static-decision": COMPENSATED | {"decision": "static"},
    "compensate-masked-static-decision": COMPENSATED | MASKED | {"decision": "static"},
    "compensate-control-0.1": COMPENSATED | {"control_share": 0.1},
    "compensate-control-0.5": COMPENSATED | {"control_share": 0.5},
    "compensate-control-0.75": COMPENSATED | {"control_share": 0.75},
    "compensate-limit-30": COMPENSATED | LIMITED,
    "compensate-limit-30-ridge-0.1": COMPENSATED | LIMITED | {"compensate_ridge": 0.1},
    "compensate-limit-30-static-decision": COMPENSATED | LIMITED | {"decision": "static"},
    "compensate-limit-30-generator-frozen": COMPENSATED | LIMITED | {"generator_learning_rate": 1e-9},
    "limit-30": LIMITED,
    "compensate-ridge-0.1": COMPENSATED | {"compensate_ridge": 0.1},
    "compensate-ridge-0.001": COMPENSATED | {"compensate_ridge": 0.001},
    "compensate-ridge-0.3": COMPENSATED | {"compensate_ridge": 0.3},
    "compensate-ridge-1": COMPENSATED | {"compensate_ridge": 1.0},
    **{
        f"compensate-ridge-0.3-control-{share}": COMPENSATED | {"compensate_ridge": 0.3, "control_share": share}
        for share in (0.05, 0.125, 0.5, 0.75)
    },
}
SPECIAL: dict[str, dict[str, Any]] = {
    "dense-lora": {},
    "static-taylor": STATIC,
    "static-taylor-compensate": STATIC | COMPENSATED,
    "static-taylor-compensate-ridge-0.1": STATIC | COMPENSATED | {"compensate_ridge": 0.1},
    "static-taylor-compensate-ridge-0.3": STATIC | COMPENSATED | {"compensate_ridge": 0.3},
    "atp": {"name": "atp", "cut": "end"},
    "atp-paper": {"name": "atp-paper"},
}
OTHER_SPACES = [f"{name}@{space}" for space in ("head_dim", "disp") for name in ("static-taylor", "compensate")]
STAGES = {
    "screen": [*SPECIAL, *CHANGES, *OTHER_SPACES],
    "final": ["dense-lora", "static-taylor", "static-taylor-compensate", "compensate-limit-30"],
}


def setting(name: str) -> tuple[str, dict[str, Any]]:
    """Space and options of a named setting.

    `default+` before a change applies it to the current defaults, not to those the search began with; `@space` after
    the name selects another space than width.

    Raises:
        SystemExit: no such setting.
    """
    plain, _, space = name.partition("@")
    known = SPECIAL | {change: START | options for change, options in CHANGES.items()}
    known |= {f"default+{change}": {"name": "atp", "cut": "end"} | options for change, options in CHANGES.items()}
    if plain not in known:
        raise SystemExit(f"There is no setting `{plain}`; choose one of {', '.join(known)}.")
    return space or "width", known[plain]
