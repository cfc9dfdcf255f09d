#!/usr/bin/env bash
# Runs each folder of tests in the environment whose code it tests; the arguments go to every pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
export PHIFLOW_HOME="${PHIFLOW_TEST_HOME:-$PWD/.phiflow-test}"
failed=0

outputs=$(mktemp -d)
trap 'rm -rf "$outputs"; kill $(jobs -p) 2>/dev/null || true' EXIT
journeys=(tests/e2e tests/flows tests/faults)

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

in_environments() {
    local failed=0
    renice -n 10 "${BASHPID:-$$}" >/dev/null
    in_environment training tests/unit/trainer "$@" || failed=1
    in_environment serving-cpu tests/unit/server "$@" || failed=1
    in_environment promptflow tests/unit/promptflow_app "$@" || failed=1
    return $failed
}

# All three wait a good deal, so they run beside each other; the output of the other two comes in one piece each.
in_environments "$@" >"$outputs/environments" 2>&1 &
environments=$!
"$bin/python" -m pytest "${journeys[@]}" "$@" >"$outputs/journeys" 2>&1 &
whole=$!
echo "== tests in the orchestrator's environment"
"$bin/python" -m pytest tests "${journeys[@]/#/--ignore=}" --ignore tests/unit/trainer --ignore tests/unit/server \
    --ignore tests/unit/promptflow_app "$@" || failed=1
wait "$whole" || failed=1
echo "== whole journeys: ${journeys[*]}"
cat "$outputs/journeys"
wait "$environments" || failed=1
cat "$outputs/environments"
exit $failed
