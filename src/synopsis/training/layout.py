"""What the files of a run's folder are called; ``loop.py`` says what is in them."""

EXPERIMENT, METRICS, CHECKPOINT = "experiment.toml", "metrics.jsonl", "checkpoint.safetensors"
PROCESS, MODEL = "process", "model"  # as the sections of an experiment are called
