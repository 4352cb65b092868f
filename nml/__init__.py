"""The few things every room stands on: user errors, command lines, safe files, the plugin registry.

Nothing here imports a room, torch or numpy, so that ``python -m plugins list`` stays instant.
"""
