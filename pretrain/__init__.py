"""The training: recipe -> engine (ddp, fsdp, deepspeed) -> checkpoints -> exported encoder.

``python -m pretrain.run`` trains one encoder on one noise level and writes a run folder::

    RUN/
      config.yaml                 the resolved command, usable with --config
      metrics.jsonl               one line a step, one a validation
      checkpoints/step-00000040/  immutable; COMPLETE.json, written last, makes it count
      export/                     the newest encoder: model.safetensors and meta.json
      logs/
      DONE.json                   written when the last step is done

See docs/pretraining.md.
"""
