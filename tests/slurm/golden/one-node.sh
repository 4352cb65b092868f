#!/bin/bash

# Parameters
#SBATCH --chdir='/home/ada/it'"'"'s "here" $HOME/snapshot'
#SBATCH --comment=nml-0123
#SBATCH --cpus-per-task=1
#SBATCH --job-name=probes
#SBATCH --no-kill
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/home/ada/it'"'"'s "here" $HOME/launch/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
NML_JOB_BEGAN=$(date +%s)
export NML_JOB_BEGAN
cd '/home/ada/it'"'"'s "here" $HOME/snapshot' || exit 1
unset PYTHONSAFEPATH
trap '' USR1 USR2 TERM

# command
export SUBMITIT_EXECUTOR=slurm
'/opt/my env/bin/python' -u -m submitit.core._submit '/home/ada/it'"'"'s "here" $HOME/launch'
