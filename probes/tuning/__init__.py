"""Fine-tuning an encoder on a task: the white box beside the black box of heads on frozen features."""
