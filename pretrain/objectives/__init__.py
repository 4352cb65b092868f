"""The objectives that there are: ``python -m pretrain.objectives list``."""
