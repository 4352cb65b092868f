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
source ~/setup.sh
export NAME='it'"'"'s a value'
cd '/home/ada/it'"'"'s "here" $HOME/snapshot' || exit 1
export PYTHONPATH='/home/ada/it'"'"'s "here" $HOME/snapshot'"${PYTHONPATH:+:$PYTHONPATH}"
while true; do
rendezvous=$('/opt/my env/bin/python' -m slurm.attempt open '/home/ada/it'"'"'s "here" $HOME/launch/nml-0123.json') || exit 1
read -r MASTER_ADDR MASTER_PORT <<< "$rendezvous"
export MASTER_ADDR MASTER_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/home/ada/it'"'"'s "here" $HOME/launch/%A_%a_%t_log.out' --cpus-per-task=3 --kill-on-bad-exit=1 --cpu-bind=cores '/opt/my env/bin/python' -u -m submitit.core._submit '/home/ada/it'"'"'s "here" $HOME/launch'


# teardown
'/opt/my env/bin/python' -m slurm.attempt close '/home/ada/it'"'"'s "here" $HOME/launch/nml-0123.json' $?
status=$?
[ "$status" -eq 98 ] || break
done
exit "$status"
