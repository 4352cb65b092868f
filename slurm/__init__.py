"""The launching: the same command on a cluster and on one machine.

``python slurm/launch.py`` is the door. Behind it, one idea a module:

What a user asks for
    ``entry`` and ``invocation`` (the command line), ``pretraining``, ``sweep``, ``single``, ``status``,
    ``usage``, ``doctor`` (and ``node_checks``, its eyes), ``logs``, ``canceling``, ``resume`` (a subcommand
    each), ``request`` (one run), ``same_run`` (is it the one that is there?), ``plan`` (a sweep as a
    graph), ``cluster`` (what a job asks of Slurm), ``sbatch_words`` (sbatch's own), ``cores`` (as many as
    the loader needs)
This machine
    ``machine`` (is there a Slurm? which GPUs?), ``standin`` (ranks as local processes), ``rooms`` (the
    others' commands, heads and tasks)
Submitting
    ``partitions`` (can the cluster give it?), ``snapshot`` (the code as it is now), ``members`` (what
    a job reads back), ``executor`` (submitit, and nothing else talks to it), ``controller`` (the queue,
    asked and told), ``dag`` (arrays that wait for each other), ``submitting`` (a sweep), ``journal``
    (jobs.jsonl), ``registry`` (whose job a run is trained by)
Inside a job
    ``job`` (from its beginning to its end), ``coordinator`` (all nodes), ``agent`` (one node), ``wire``
    (the line between them), ``ranks`` (as their agent sees them), ``rank`` (the program of one),
    ``container`` (an image around it), ``rendezvous`` (where ranks meet), ``verdict`` (again?),
    ``attempt`` (the records), ``requeue``, ``ending`` (of a sweep, told);
    ``continuing`` (a job of its own: submits what the queue had no room for)
Looking
    ``states`` (Slurm's word), ``progress`` (a run's own), ``receipts`` (a probe's), ``table`` (all of it),
    ``spans`` (when nodes were held), ``local_attempt`` (the record of what ran here)

The other rooms are run as command lines; nothing of theirs is imported. See docs/slurm.md.
"""
