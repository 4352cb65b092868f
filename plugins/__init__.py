"""The heads: what is trained on an encoder's frozen features, and how third parties add their own.

``plugins.head`` is the contract, ``plugins.registry`` finds heads, ``plugins.testing`` checks them.
Importing this package imports no torch.
"""
