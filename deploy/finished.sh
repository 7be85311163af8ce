#!/bin/sh
# Ends with 0 where a run has reached a step: deploy/finished.sh WORKDIR STEPS. A bucket, gs://, is asked by Python.
case $1 in
gs://*)
    python -c 'import sys; from ddpm_jax.checkpoints.reader import saved_steps
sys.exit(int(sys.argv[2]) not in saved_steps(sys.argv[1]))' "$1" "$2"
    ;;
*) [ -d "$1/checkpoints/$2" ] ;;
esac
