#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --chdir='/home/ada/it'"'"'s "here" $HOME/snapshot'
#SBATCH --comment=nml-0123
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --job-name=probes
#SBATCH --mem=921600MB
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/home/ada/it'"'"'s "here" $HOME/launch/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=2880

# setup
module load cuda
export NCCL_SOCKET_IFNAME=ib0
cd '/home/ada/it'"'"'s "here" $HOME/snapshot' || exit 1
export PYTHONPATH='/home/ada/it'"'"'s "here" $HOME/snapshot'"${PYTHONPATH:+:$PYTHONPATH}"
while true; do
rendezvous=$('/opt/my env/bin/python' -m slurm.attempt open '/home/ada/it'"'"'s "here" $HOME/launch/nml-0123.json') || exit 1
read -r MASTER_ADDR MASTER_PORT <<< "$rendezvous"
export MASTER_ADDR MASTER_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/home/ada/it'"'"'s "here" $HOME/launch/%j_%t_log.out' --cpus-per-task=12 --kill-on-bad-exit=1 '/opt/my env/bin/python' -u -m submitit.core._submit '/home/ada/it'"'"'s "here" $HOME/launch'


# teardown
'/opt/my env/bin/python' -m slurm.attempt close '/home/ada/it'"'"'s "here" $HOME/launch/nml-0123.json' $?
status=$?
[ "$status" -eq 98 ] || break
done
exit "$status"
