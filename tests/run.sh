#!/usr/bin/env bash
# Runs each folder of tests in the environment whose code it tests; the arguments go to every pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export PHIFLOW_HOME="${PHIFLOW_TEST_HOME:-$PWD/.phiflow-test}"
failed=0

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

in_environment() { # name, folder of tests, arguments
    local name=$1 folder=$2 python
    shift 2
    python=$("$bin/python" -m tasks.platforms.local.environments "$name")
    # The test tools live apart, so that the environment stays exactly what is served and trained in.
    "$bin/python" -I tasks/platforms/local/uv.py pip install --quiet --python "$python" \
        --target "$PHIFLOW_HOME/test-tools-$name" -r "tests/requirements-$name.txt"
    echo "== $folder in the environment '$name'"
    PYTHONPATH="$PWD:$PHIFLOW_HOME/test-tools-$name" "$python" -m pytest "$folder" "$@"
}

echo "== tests in the orchestrator's environment"
"$bin/python" -m pytest tests --ignore tests/unit/trainer --ignore tests/unit/server --ignore tests/unit/promptflow_app "$@" || failed=1
# Beside each other, since each waits a good deal; each one's output in one piece.
in_environment training tests/unit/trainer "$@" >"$results/training" 2>&1 & training=$!
in_environment serving-cpu tests/unit/server "$@" >"$results/serving-cpu" 2>&1 & serving=$!
in_environment promptflow tests/unit/promptflow_app "$@" >"$results/promptflow" 2>&1 & promptflow=$!
for job in training:$training serving-cpu:$serving promptflow:$promptflow; do
    wait "${job#*:}" || failed=1
    cat "$results/${job%%:*}"
done
exit $failed
