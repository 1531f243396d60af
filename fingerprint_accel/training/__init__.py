"""The training loop and its parts: optimizer step, schedule, validation, checkpoints, resume and FSDP."""
