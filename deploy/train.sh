#!/bin/sh
# Runs train.py for a scheduler that starts stopped jobs again, and tells it by the exit code whether to.
#
#   deploy/train.sh WORKDIR STEPS [other arguments of train.py]
#
# train.py ends with 0 when it is asked to stop and has saved: to Kubernetes that would be a finished job, also in the
# pods that only stopped because another one was asked to. Here 0 means that the run has reached step STEPS, and 75
# (EX_TEMPFAIL) that it was stopped on request and goes on where it is when started again. Other codes are train.py's: 2
# is a mistake in the arguments, which starting again does not mend.
set -u

if [ "$#" -lt 2 ]; then
    echo "usage: deploy/train.sh WORKDIR STEPS [other arguments of train.py]" >&2
    exit 2
fi
workdir=$1
steps=$2
shift 2

python train.py --workdir "$workdir" --config.train.num_steps="$steps" "$@" &
pid=$!
# As the first process of a container this shell gets the signal, and must pass it on.
trap 'kill -TERM "$pid" 2>/dev/null' TERM
trap 'kill -INT "$pid" 2>/dev/null' INT

wait "$pid"
code=$?
# A signal ends `wait`, not train.py, which saves first.
while [ "$code" -gt 128 ] && kill -0 "$pid" 2>/dev/null; do
    wait "$pid"
    code=$?
done

if [ "$code" -eq 0 ] && ! "$(dirname "$0")/finished.sh" "$workdir" "$steps"; then
    exit 75
fi
exit "$code"
