"""The training: recipe -> engine (ddp, fsdp, deepspeed) -> checkpoints -> exported encoder.

``python -m pretrain.run`` trains one encoder on one noise level and writes a run folder (:mod:`nml.layout`).
See docs/pretraining.md.
"""
