#!/usr/bin/env bash
# Submits a run to Slurm; it is requeued, and continues, until it is done.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/slurm.sh [options] -- FLAGS OF imgcls_jax.main...

  --name=NAME            job name (imgcls)
  --nodes=N              (1)
  --gpus_per_node=N      (8)
  --cpus_per_gpu=N       CPU cores that decode images for one GPU (8)
  --time=HH:MM:SS        after which the job is requeued (24:00:00)
  --partition=NAME --account=NAME
  --python=PATH          (python)
  --dry_run              print the batch script and submit nothing

Run it where --config's path is right; --workdir must be on storage that all nodes share.
USAGE
}

fail() {
  echo "launch/slurm.sh: $1" >&2
  usage >&2
  exit 2
}

name=imgcls nodes=1 gpus_per_node=8 cpus_per_gpu=8 time=24:00:00 partition='' account='' python=python dry_run=''
while (($#)); do
  case $1 in
    --name=?* | --nodes=?* | --gpus_per_node=?* | --cpus_per_gpu=?* | --time=?* | --partition=?* | --account=?* | --python=?*)
      flag=${1%%=*}
      printf -v "${flag#--}" '%s' "${1#*=}"
      ;;
    --dry_run) dry_run=1 ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown flag $1" ;;
  esac
  shift
done
(($#)) || fail "no flags for imgcls_jax.main after --"
for number in "$nodes" "$gpus_per_node" "$cpus_per_gpu"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "not a positive number: $number"
done

# One task a GPU: it is what JAX expects of Slurm (each task takes the GPU of its local number), and every GPU gets a
# Python interpreter of its own to decode its images.
# TERM goes to the tasks two minutes before the time is up: they finish the step, save and exit with 143. A task that
# fails ends the others through JAX's heartbeat; Slurm must not kill them, for they may still be saving.
batch_script() {
  local command
  command=$(printf ' %q' "$python" -m imgcls_jax.main "$@")
  cat <<SCRIPT
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus_per_node
#SBATCH --gpus-per-node=$gpus_per_node
#SBATCH --cpus-per-task=$cpus_per_gpu
#SBATCH --time=$time
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name-%j.log

srun --kill-on-bad-exit=0 --cpus-per-task=$cpus_per_gpu$command
code=\$?
if [ \$code -eq 143 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
SCRIPT
}

if [[ $dry_run ]]; then
  batch_script "$@"
else
  batch_script "$@" | sbatch
fi
