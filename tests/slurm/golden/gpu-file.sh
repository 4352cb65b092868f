#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --chdir='/home/ada/it'"'"'s "here" $HOME/snapshot'
#SBATCH --comment=nml-0123
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --job-name=probes
#SBATCH --mem=921600MB
#SBATCH --no-kill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/home/ada/it'"'"'s "here" $HOME/launch/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=2880

# setup
NML_JOB_BEGAN=$(date +%s)
export NML_JOB_BEGAN
module load cuda
export NCCL_SOCKET_IFNAME=ib0
cd '/home/ada/it'"'"'s "here" $HOME/snapshot' || exit 1
unset PYTHONSAFEPATH
trap '' USR1 USR2 TERM

# command
export SUBMITIT_EXECUTOR=slurm
'/opt/my env/bin/python' -u -m submitit.core._submit '/home/ada/it'"'"'s "here" $HOME/launch'
