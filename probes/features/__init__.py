"""Features: computed once for each (encoder, samples, view), kept on disk, shared by all heads.

A feature store is a folder::

    features/
        <key>/                       first 32 hex digits of the hash of everything the features follow from
            key.json                 what the key is made of
            lock                     byte n is locked by whoever computes chunk n
            chunk-000000.npy ...     float32 [rows, D], each whole or absent, while the pass is under way
            features.npy             float32 [N, D]
            DONE.json                written last: sizes, hash, time
"""

from probes.features.computing import feature_pass
from probes.features.store import FeatureKey, Features, FeatureStore, feature_key

__all__ = ["FeatureKey", "FeatureStore", "Features", "feature_key", "feature_pass"]
