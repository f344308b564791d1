"""Named settings of ATP. Every option that matters is named, so that other defaults do not change a preset."""

ATP_PAPER = {
    "decision": "dynamic",
    "decisions": "sampled",
    "prior": "none",
    "generator": "transformer",
    "control_share": 0.5,
    "control_limit": None,
    "cut": "end",
    "gate_gradients": "calibration",
    "decision_every": 1,
    "temperature": 0.4,
    "base": 3.0,
    "budget_weight": 5.0,
    "lora_aware": True,
    "regulariser": "lasso",
    "lasso_weight": 0.3,
    "lasso_weight_frozen": 1000.0,
    "compensate": False,
}
