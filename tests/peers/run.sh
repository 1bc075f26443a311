#!/usr/bin/env bash
# Runs the tests beside other libraries, each in an environment of its own. Needs python3 and a network for pip.
set -euo pipefail

cd "$(dirname "$0")/../.."
failed=0
for peer in "transformer-lens>=4.3" "sae-lens>=6.54"; do
    environment=.peers/${peer%%>*}
    [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
    "$environment/bin/pip" install -q -e ".[test]" "$peer"
    echo "+ $peer"
    HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest tests/peers -rs "$@" || failed=1
done
exit $failed
