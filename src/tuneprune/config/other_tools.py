"""Keys of other tools, and what to write in a run file instead."""

_KEYS: dict[str, str] = {
    "model": "model_name_or_path model_name base_model model_id model_path pretrained_model_name_or_path",
    "model: {base: ..., adapter: ...}": "adapter adapter_path adapter_name_or_path lora_path peft_model",
    "seed": "random_seed manual_seed data_seed",
    "method": "pruner pruning_method pruner_type algorithm",
    "export": "exports export_format formats",
    "budget.keep": "keep_ratio density remaining",
    "budget.at_most": "max_params max_parameters target_size target_params",
    "budget.protect": "protected_layers protect_layers skip_layers layers_to_skip ignored_layers",
    "budget.widths": "target_widths intermediate_size num_key_value_heads num_attention_heads",
    "data.train": "dataset datasets train_file train_files train_data train_dataset dataset_name dataset_path"
    " data_path",
    "data.calibration": "calibration_dataset calibration_data calib_dataset calib_data",
    "data.packing": "sample_packing",
    "data.completion_only": "completion_only_loss assistant_only_loss",
    "tune.learning_rate": "lr",
    "tune.final_learning_rate_share": "min_lr_ratio min_lr_rate",
    "tune.steps": "max_steps num_steps train_steps num_training_steps total_steps iterations max_iters",
    "tune.epochs": "num_train_epochs num_epochs n_epochs max_epochs epoch",
    "tune.max_length": "max_seq_length max_seq_len seq_length seq_len sequence_len sequence_length block_size"
    " cutoff_len context_length model_max_length",
    "tune.warmup_share": "warmup_ratio warmup_fraction",
    "tune.clip": "max_grad_norm grad_clip gradient_clip gradient_clipping gradient_clip_val",
    "tune.log_every": "logging_steps log_interval log_every_n_steps",
    "tune.checkpoint_every": "save_steps save_interval checkpoint_steps",
    "tune.trackers": "report_to loggers",
    "tune.gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing",
    "tune.lora.rank": "r lora_r lora_rank",
    "tune.lora.alpha": "lora_alpha",
    "tune.lora.dropout": "lora_dropout",
    "tune.lora.target_modules": "lora_target_modules lora_target lora_targets modules",
    "evaluate.batch_size": "per_device_eval_batch_size eval_batch_size",
    "data.train: [{path: ..., limit: 1000}]": "max_samples max_train_samples num_samples",
    "data.train: [{path: ..., fields: {text: COLUMN}}]": "text_field text_column dataset_text_field",
}
"""Our key, and its names in other tools."""

_ROWS = "write `tune.batch_size`, the rows of one optimiser step over all processes"
_SENTENCES: dict[str, str] = {
    "write `evaluate.tasks`, or `evaluate.suite` for a named suite": "eval evaluation validation eval_dataset test"
    " eval_data test_file validation_file eval_file",
    f"{_ROWS}; `tune.micro_batch_size` counts those of one forward pass": "per_device_train_batch_size"
    " train_batch_size per_device_batch_size global_batch_size",
    "write `tune.micro_batch_size`, the rows of one forward pass of a process; a step accumulates until it has"
    " `tune.batch_size` rows": "gradient_accumulation_steps accumulate_grad_batches grad_accum_steps",
    "write `tune.warmup_share`, a share of the steps": "warmup_steps num_warmup_steps",
    "write `tune.precision`, which is `auto`, `bf16` or `fp32`; the pruned model is saved in the precision of the base"
    " model": "bf16 fp16 dtype torch_dtype mixed_precision",
    "leave it out: the optimiser is AdamW (`tune.learning_rate`, `tune.weight_decay`, `tune.clip`)": "optim optimizer"
    " optimiser",
    "leave it out: the learning rate rises over `tune.warmup_share` of the steps and falls along a cosine to"
    " `tune.final_learning_rate_share` of its peak": "lr_scheduler_type lr_scheduler scheduler",
    "write `--out FOLDER` on the command line": "output_dir output out out_dir save_dir output_path",
    "write `--resume` on the command line": "resume resume_from_checkpoint",
    "write `data.completion_only: false` to learn prompts too": "train_on_inputs train_on_prompts",
    "leave it out: a base model is loaded as it is stored, and a quantised export is made with `export`": "load_in_4bit"
    " load_in_8bit quantization quantization_config bits",
    "leave it out: every process has the whole model; start several with torchrun": "deepspeed fsdp tp",
}
"""What to do about keys without an exact equivalent here, and those keys."""

_SPARSITY = "sparsity target_sparsity sparsity_ratio pruning_ratio prune_ratio pruning_rate ratio compression_ratio"

_ADVICE = {word: f"write `{ours}`" for ours, words in _KEYS.items() for word in words.split()}
_ADVICE |= {word: sentence for sentence, words in _SENTENCES.items() for word in words.split()}


def advice(word: str, value: object) -> str | None:
    """What to write instead of a key of another tool; None for unknown keys."""
    word = word.lower().replace("-", "_")
    if word not in _SPARSITY.split():
        return _ADVICE.get(word)
    example = ""
    if isinstance(value, int | float) and 0 < value < 1:
        example = f", so `budget.keep: {round(1 - value, 6):g}`"
    return f"write `budget.keep`, the share that is kept; keep = 1 - {word}{example}"
