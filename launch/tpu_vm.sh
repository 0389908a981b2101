#!/usr/bin/env bash
# Creates a Cloud TPU, runs the same command on all its workers, and starts over after a preemption until it is done.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE [options] -- FLAGS OF imgcls_jax.main...

  --name=NAME       of the TPU and of its queued resource
  --zone=ZONE       such as us-east5-b
  --type=TYPE       accelerator type, such as v5litepod-64 or v6e-16
  --version=NAME    runtime version (tpu-ubuntu2204-base)
  --setup=COMMAND   run on every worker after the installation, such as a mount of the storage for --workdir
  --spot            cheaper, may be preempted
  --delete          delete the TPU at the end, whatever the outcome
  --dry_run         print the commands and run nothing

Runs the last commit of this checkout. --workdir must be on storage that all workers share and that outlives them: a
requeued run continues from there. The exit code is that of imgcls_jax.main.
USAGE
}

fail() {
  echo "launch/tpu_vm.sh: $1" >&2
  usage >&2
  exit 2
}

name='' zone='' type='' version=tpu-ubuntu2204-base setup='' spot='' delete='' dry_run=''
while (($#)); do
  case $1 in
    --name=?* | --zone=?* | --type=?* | --version=?* | --setup=?*)
      flag=${1%%=*}
      printf -v "${flag#--}" '%s' "${1#*=}"
      ;;
    --spot | --delete | --dry_run) printf -v "${1#--}" 1 ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "unknown flag $1" ;;
  esac
  shift
done
for flag in name zone type; do
  [[ ${!flag} ]] || fail "--$flag is missing"
done
(($#)) || fail "no flags for imgcls_jax.main after --"

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Every argument as the remote shell must read it.
flags=$(printf ' %q' "$@")
install='rm -rf imgcls_jax && mkdir imgcls_jax && tar -xzf imgcls_jax.tar.gz -C imgcls_jax && cd imgcls_jax'
# The image's own Python may be too old; uv brings one.
install+=' && python3 -m pip install -q --user uv && python3 -m uv venv -q --python 3.12 .venv'
install+=" && python3 -m uv pip install -q -c constraints.txt -e '.[tpu]'"
# gcloud does not hand on the exit code of several workers, so it is left in a file.
train="cd imgcls_jax && rm -f exit_code; .venv/bin/python -m imgcls_jax.main$flags; echo \$? > exit_code"

exec 3>&1 # for what is printed inside $(...)

run() {
  local word line='+'
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "$line" >&3
  [[ $dry_run ]] || "$@"
}

say() {
  echo "launch/tpu_vm.sh: $1" >&2
}

on_workers() { # on_workers WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

remove() {
  run gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
}

state() { # ACTIVE, SUSPENDED, ...; nothing when there is no such TPU
  run gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' || true
}

create() { # fails when Google cannot or will not make one
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} || return
  while [[ ! $dry_run ]]; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED) return 1 ;;
    esac
    say "waiting for $name, now ${now:-unknown}"
    sleep 30
  done
}

install() {
  run gcloud compute tpus tpu-vm scp "$folder/imgcls_jax.tar.gz" "$name:" --zone="$zone" --worker=all \
    && on_workers all "$install" && { [[ ! $setup ]] || on_workers all "$setup"; }
}

finish() {
  rm -rf "$folder"
  [[ ! $delete ]] || remove || true
}

folder=$(mktemp -d)
trap finish EXIT
run git -C "$repository" archive --format=tar.gz --output="$folder/imgcls_jax.tar.gz" HEAD

# Each round makes a TPU unless there is one, installs and runs. A preempted TPU is deleted and made anew. After 143
# (told to stop, saved) and after a round that left no exit code (preempted, connection lost) the same command runs
# again; five rounds in a row without an exit code are a failure of their own.
lost=0
while true; do
  code='' now=$(state)
  if [[ $now != ACTIVE ]]; then
    [[ ! $now ]] || remove || true
    now=''
  fi
  if { [[ $now ]] || create; } && install; then
    on_workers all "$train" || true
    code=$(on_workers 0 'cat imgcls_jax/exit_code' || true)
  fi
  if [[ $dry_run ]]; then
    echo "# after a preemption: delete $name, then all of this again"
    exit 0
  elif [[ $code =~ ^[0-9]+$ && $code != 143 ]]; then
    exit "$code"
  elif [[ $code == 143 ]]; then
    lost=0
  elif ((++lost == 5)); then
    say "five rounds in a row left no exit code; see the messages above"
    exit 1
  fi
  say "this round ended with exit code ${code:-unknown}: running the same command again"
done
