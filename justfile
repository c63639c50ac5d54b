# All recipes share the quickstart's worker: its data folder and, while it has one, its port.
export CIWORKER_DATA_DIR := env("CIWORKER_DATA_DIR", justfile_directory() / ".quickstart/data")
export CIWORKER_PORT := env("CIWORKER_PORT", `cat .quickstart/worker.port 2>/dev/null || echo 8480`)

[private]
default:
    @{{ just_executable() }} --justfile {{ justfile() }} --list

# run a worker in the foreground
serve:
    #!/usr/bin/env bash
    set -euo pipefail
    scripts/setup
    scripts/engine
    export CIWORKER_DEFAULT_IMAGE=${CIWORKER_DEFAULT_IMAGE:-$(scripts/base-image | tail -n 1)}
    eval "$(python3 scripts/host_settings.py)"
    exec .venv/bin/ciworker serve

# everything that must hold: linters, types, tests (arguments go to pytest)
test *arguments:
    @scripts/test {{ arguments }}

# every fault of the matrix, or of these rows of it, in long loops; a line a row (as root)
chaos *rows:
    @scripts/chaos {{ rows }}

# every attack of the matrix, or of these rows of it: inputs tried, inputs that got through (as root)
attack *rows:
    @scripts/attack {{ rows }}

# linters and types alone
lint:
    @scripts/setup
    @scripts/lint

# every promised speed (S1-S13) beside its baseline, or these rows; all of them write RESULTS.md (as root)
bench *rows:
    @scripts/bench/all {{ rows }}

# compare the running worker's jobs with the engine's containers now
resync:
    @.venv/bin/ciworker resync

# have all parked containers that the settings name, and no others
pool-up:
    @.venv/bin/ciworker pool up

# remove all parked containers and have none, until pool-up
pool-down:
    @.venv/bin/ciworker pool down

# submit the sample project and watch it (starts the quickstart's worker if need be)
demo:
    @scripts/quickstart
