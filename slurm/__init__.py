"""The launching: the same command on a cluster and on one machine.

``python slurm/launch.py`` is the door. Behind it, one idea a module:

======================  ==========================================================================
request                 what one pre-training run is, checked before any work starts
cluster                 what a job asks of Slurm: cluster files, then the command line
detection               whether a Slurm controller answers, and if not, why
standin                 N nodes x M tasks as local processes
======================  ==========================================================================

The other rooms are run as command lines; nothing of theirs is imported.
"""
