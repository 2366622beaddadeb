#!/bin/sh
# End one node, if the process is still that node.
set -eu
cd "$FORERUN_DIR" 2>/dev/null || exit 0
[ -f node.pid ] || exit 0
pid=$(cat node.pid)
is_ours() { tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "FORERUN_NODE=$FORERUN_TAG"; }
if is_ours; then
    kill "$pid" 2>/dev/null || true
    tries=0
    while is_ours && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    ! is_ours || kill -9 "$pid" 2>/dev/null || true
fi
rm -f node.pid
