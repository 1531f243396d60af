"""The training loop and its parts: step, schedule, validation, checkpoints, resume, FSDP."""
