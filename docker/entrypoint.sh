#!/bin/sh
# Pull the model when the volume does not have it yet, then become the server, so that it gets the stop signal.
# Inside a container the server must listen on every interface; what the host publishes decides who can reach it.
set -eu

model="$1"
shift

case "$model" in
  */*) ;;                  # a folder that was mounted
  *) glass pull "$model" ;;  # a name; does nothing when it is there
esac

exec glass serve "$model" --host 0.0.0.0 --port 8000 "$@"
