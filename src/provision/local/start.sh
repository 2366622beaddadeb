#!/bin/sh
# Start one node in a session of its own. A failed create does not run the destroy provisioner, so
# whatever this started and could not keep it ends itself.
set -eu
mkdir -p "$FORERUN_DIR"
cd "$FORERUN_DIR"
"$FORERUN_STOP"
enter=
[ -z "$FORERUN_NETNS" ] || enter="ip netns exec $FORERUN_NETNS"
# the node must not carry the run's tag or the state's password
setsid env -u FORERUN_RUN -u TF_HTTP_PASSWORD -u TF_HTTP_USERNAME "FORERUN_NODE=$FORERUN_TAG" \
    $enter "$FORERUN_BINARY" node --config "$FORERUN_CONFIG" >>node.log 2>&1 </dev/null &
pid=$!
echo "$pid" >node.pid
for look in 1 2 3 4 5; do
    sleep 0.1
    kill -0 "$pid" 2>/dev/null && continue
    rm -f node.pid
    echo "the node ended at once:" >&2
    tail -n 5 node.log >&2
    exit 1
done
