#!/usr/bin/env bash
# What every TPU VM runs, as root, whenever it starts: installs what is not there and goes on with the job.
set -euo pipefail

home=/opt/jaxgeom
attribute() {
    curl --fail --silent --retry 5 --header 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

mkdir -p "$home/work"
attribute jaxgeom-restart >"$home/restart.sh"
attribute jaxgeom-job >"$home/job.sh"
chmod +x "$home/restart.sh"
# shellcheck source=/dev/null
source "$home/job.sh" # store, every, command
: "${store:?}" "${every:?}" "${command:?}"

if [ ! -x "$home/venv/bin/jaxgeom" ]; then
    # The image's own Python is older than what jaxgeom needs; uv brings one.
    python3 -m pip install --quiet --target "$home/uv" uv
    export PYTHONPATH=$home/uv
    python3 -m uv venv --clear --python 3.12 "$home/venv"
    rm -f "$home"/jaxgeom-*.whl
    gcloud storage cp "$store/launch/*.whl" "$home/"
    wheels=("$home"/jaxgeom-*.whl) # one: `queued.sh` takes the others away
    python3 -m uv pip install --python "$home/venv/bin/python" "${wheels[0]}[tpu,gcs]"
    unset PYTHONPATH
fi

worker=$(attribute agent-worker-number || echo 0)
IFS=, read -ra hosts <<<"$(attribute worker-network-endpoints || echo one)"
if ((${#hosts[@]} > 1)); then command+=(--distributed); fi

# A unit of its own gets SIGTERM when the machine is taken away: jaxgeom then saves the step it has reached.
systemd-run --unit=jaxgeom --collect --property=KillMode=mixed --property=TimeoutStopSec=120 \
    --property=WorkingDirectory="$home/work" \
    --setenv=HOME=/root --setenv=PATH="$home/venv/bin:/snap/bin:$PATH" \
    "$home/restart.sh" --store "$store" --work "$home/work" --every "$every" --worker "$worker" \
    --log "$home/log" -- "${command[@]}"
