"""The data: sources, noise plans, tar shards with a manifest, and indexed reading in an elastic order.

A shard set is a folder (or fsspec URL)::

    SET/
      shard-000000.tar ...   plain WebDataset tars: KEY.jpg, KEY.cls or KEY.txt, KEY.json
      manifest.parquet       a row a sample: where it lies, its hash, clean and noisy supervision
      index.arrow            the part of the manifest that reading needs, memory-mapped
      stats.json             class counts and the realised transition matrix of every level
      set.json               what the set is; written last: a folder without it is no set

``python -m shards.write`` makes one, ``relabel`` adds a noise level, ``verify`` and ``info`` look,
``index`` makes foreign tars readable. See docs/shards.md.
"""
