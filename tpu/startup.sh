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

worker=$(attribute agent-worker-number || echo 0)
IFS=, read -ra hosts <<<"$(attribute worker-network-endpoints || echo one)"
if ((${#hosts[@]} > 1)); then command+=(--distributed); fi

install() {
    local wheels
    # The image's own Python is older than what jaxgeom needs; uv brings one. Of wheels there is one: `queued.sh` takes
    # the others away.
    python3 -m pip install --quiet --target "$home/uv" uv \
        && PYTHONPATH=$home/uv python3 -m uv venv --clear --python 3.12 "$home/venv" \
        && rm -f "$home"/jaxgeom-*.whl \
        && gcloud storage cp "$store/launch/*.whl" "$home/" \
        && wheels=("$home"/jaxgeom-*.whl) \
        && PYTHONPATH=$home/uv python3 -m uv pip install --python "$home/venv/bin/python" "${wheels[0]}[tpu,gcs]"
}

# Nobody starts this again but the next start of the machine: what the network does not give now it may give later.
tries=0
until [ -x "$home/venv/bin/jaxgeom" ] || install; do
    tries=$((tries + 1))
    if ((tries >= 8)); then
        # The machines would stand idle, and cost.
        [ "$worker" != 0 ] || echo "1 jaxgeom could not be installed; see the serial port's output" \
            | gcloud storage cp - "$store/status"
        exit 1
    fi
    sleep $((tries < 5 ? 10 << tries : 300))
done

job=("$home/restart.sh" --store "$store" --work "$home/work" --every "$every" --worker "$worker"
    --log "$home/log" -- "${command[@]}")
# A unit of its own gets SIGTERM when the machine is taken away: jaxgeom then saves the step it has reached. In a unit's
# command a $ begins the name of a variable, and two are one.
systemd-run --unit=jaxgeom --collect --property=KillMode=mixed --property=TimeoutStopSec=120 \
    --property=WorkingDirectory="$home/work" \
    --setenv=HOME=/root --setenv=PATH="$home/venv/bin:/snap/bin:$PATH" "${job[@]//\$/\$\$}"
