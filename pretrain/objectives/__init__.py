"""Objectives beside classify and clip, and what they are made of.

::

    embedding.py     an encoder with a projector, several views of a sample, neighbours to be judged by
    contrast.py      the contrast over the global batch that simclr and supcon share
    simclr.py        a sample's views are one class (Chen et al. 2020)
    supcon.py        a class is what the labels say (Khosla et al. 2020)
    moco.py          a teacher that follows, and a queue of what it said (He et al. 2020)
    teacher.py       the teacher: an average of a network, saved with the run and never exported
    conformance.py   what every objective promises, as small named checks
    small_runs.py    the runs that they look at, in forked processes
"""
