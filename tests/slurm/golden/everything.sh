#!/bin/bash

# Parameters
#SBATCH --array=0-1%1
#SBATCH --chdir='/home/ada/it'"'"'s "here" $HOME/snapshot'
#SBATCH --comment='project X nml-0123'
#SBATCH --constraint='a100&ib'
#SBATCH --cpus-per-task=3
#SBATCH --dependency=afterok:4:5
#SBATCH --exclude='n[1-3]'
#SBATCH --exclusive
#SBATCH --job-name=probes
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=END
#SBATCH --mem=1536MB
#SBATCH --no-kill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/home/ada/it'"'"'s "here" $HOME/launch/%A_%a_0_log.out'
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@120
#SBATCH --time=90

# setup
NML_JOB_BEGAN=$(date +%s)
export NML_JOB_BEGAN
source ~/setup.sh
export NAME='it'"'"'s a value'
cd '/home/ada/it'"'"'s "here" $HOME/snapshot' || exit 1
unset PYTHONSAFEPATH
trap '' USR1 USR2 TERM

# command
export SUBMITIT_EXECUTOR=slurm
'/opt/my env/bin/python' -u -m submitit.core._submit '/home/ada/it'"'"'s "here" $HOME/launch'
