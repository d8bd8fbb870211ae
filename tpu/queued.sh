#!/usr/bin/env bash
# A command of jaxgeom on Cloud TPU VMs that come from a queue.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
usage: queued.sh launch|watch --name N --project P --zone Z --accelerator A --store gs://BUCKET/FOLDER [options] -- COMMAND…
       queued.sh status|logs|delete --name N --project P --zone Z

  launch   puts a wheel of this checkout into STORE/launch and asks for the machines; they start COMMAND by themselves,
           in a copy of STORE/work, and go on with it whenever they start again; with
           --out gs://… the command keeps what it writes there itself
  watch    launch, then asks again when spot machines are taken away, until STORE/status says how it ended; then
           deletes the machines and exits with that status. Stopped and started again, it goes on
  status   what the queue says
  logs     follows the output of the first machine
  delete   gives machines and request back; the store stays

  --accelerator A          v5litepod-8, v5p-8, v6e-8, … (gcloud compute tpus accelerator-types list --zone Z)
  --spot | --reserved      spot machines, or those of a reservation; without, on demand
  --service-account EMAIL  who the machines are (default: the project's default)
  --runtime-version V      (default: the one for JAX on this accelerator)
  --valid-until-duration D give up the request when it waits longer, 6h for example
  --network N --subnetwork S --internal-ips
  --every SECONDS          between copies to the store (default 300)
  --poll SECONDS           of watch (default 60)
  --dry-run                print every command, run none
TEXT
}

(($#)) || { usage >&2 && exit 2; }
action=$1
shift
case $action in -h | --help) usage && exit 0 ;; launch | watch | status | logs | delete) ;; *) die "no action $action; see --help" ;; esac
[ "${1:-}" != --help ] || { usage && exit 0; }

name='' project='' zone='' accelerator='' store='' spot='' reserved='' service_account='' runtime_version=''
valid_until_duration='' network='' subnetwork='' internal_ips='' every=300 poll=60
options name project zone accelerator store spot! reserved! service_account runtime_version valid_until_duration \
    network subnetwork internal_ips! every poll -- "$@"
need name project zone
check_names name
check_numbers 1 every
check_numbers 0 poll
place=(--project="$project" --zone="$zone")
queue=(gcloud compute tpus queued-resources)

runtime() {
    case $accelerator in
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
        *) die "--accelerator $accelerator: not known here; give --runtime-version too" ;;
    esac
}

prepare() { # the wheel, the only one there; at a launch the status of an earlier one is no longer true
    local wheels="$scratch/wheels" old="$store/launch/jaxgeom-*.whl"
    run "${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here/.."
    if [ -n "$dry" ] || gcloud storage ls "$old" >/dev/null 2>&1; then run gcloud storage rm "$old"; fi
    if [ -n "$dry" ]; then
        run gcloud storage cp "$wheels/jaxgeom-*.whl" "$store/launch/"
    else
        gcloud storage cp "$wheels"/jaxgeom-*.whl "$store/launch/"
    fi
    # A watch that finds one says how the job ended and asks for nothing.
    [ "$action" = launch ] || return 0
    if [ -n "$dry" ] || gcloud storage ls "$store/status" >/dev/null 2>&1; then run gcloud storage rm "$store/status"; fi
}

create() {
    local words=()
    [ -z "$spot" ] || words+=(--spot)
    [ -z "$reserved" ] || words+=(--reserved)
    [ -z "$service_account" ] || words+=(--service-account="$service_account")
    [ -z "$valid_until_duration" ] || words+=(--valid-until-duration="$valid_until_duration")
    [ -z "$network" ] || words+=(--network="$network")
    [ -z "$subnetwork" ] || words+=(--subnetwork="$subnetwork")
    [ -z "$internal_ips" ] || words+=(--internal-ips)
    run "${queue[@]}" create "$name" "${place[@]}" --node-id="$name" --accelerator-type="$accelerator" \
        --runtime-version="$runtime_version" --scopes=https://www.googleapis.com/auth/cloud-platform \
        --metadata-from-file="startup-script=$here/startup.sh,jaxgeom-restart=$here/restart.sh,jaxgeom-job=$scratch/job.sh" \
        "${words[@]}"
}

delete() { run "${queue[@]}" delete "$name" "${place[@]}" --force --quiet; }

state() { # of the request; GONE where there is none, UNKNOWN where nobody answers
    local said
    if said=$("${queue[@]}" describe "$name" "${place[@]}" --format='value(state.state)' 2>&1); then
        echo "$said"
    elif [[ $said == *NOT_FOUND* || $said == *"not found"* ]]; then
        echo GONE
    else
        echo UNKNOWN
    fi
}

watch() {
    local ended now before='' failures=0
    if [ -n "$dry" ]; then
        run "${queue[@]}" describe "$name" "${place[@]}" --format='value(state.state)'
        run gcloud storage cat "$store/status"
        delete
        return
    fi
    while :; do
        if ended=$(gcloud storage cat "$store/status" 2>/dev/null); then
            say "ended: $ended"
            delete || say "the machines could not be deleted; do it with: $program delete"
            exit "${ended%% *}"
        fi
        now=$(state)
        [ "$now" = "$before" ] || say "$now"
        before=$now
        case $now in
            ACTIVE) failures=0 ;;
            SUSPENDED) # taken away: the request has to be deleted and made again
                if ! delete || ! create; then say "tried again in $poll seconds"; fi
                ;;
            FAILED | GONE)
                failures=$((failures + 1))
                ((failures <= 10)) || die "the request failed $((failures - 1)) times in a row; see $program status"
                [ "$now" = GONE ] || delete || true
                create || say "tried again in $poll seconds"
                ;;
        esac
        sleep "$poll"
    done
}

case $action in
    status) run "${queue[@]}" describe "$name" "${place[@]}" && exit ;;
    delete) delete && exit ;;
    logs)
        run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0 --command='sudo tail -n 100 -F /opt/jaxgeom/log'
        exit
        ;;
esac

need accelerator store
check_store "$store"
store=${store%/}
[ -z "$spot" ] || [ -z "$reserved" ] || die "--spot and --reserved exclude each other"
((${#rest[@]})) || die "no command after --, for example: -- jaxgeom study experiment.py --out $store/out"
# The number counts chips, before v5e and of v5p cores: up to eight are of one host.
if [[ $accelerator =~ -([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > 8)); then check_out 2; fi
[ -n "$runtime_version" ] || runtime_version=$(runtime)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
{
    printf 'store=%q\nevery=%q\ncommand=(' "$store" "$every"
    printf ' %q' "${rest[@]}"
    printf ' )\n'
} >"$scratch/job.sh"
if [ -n "$dry" ]; then echo "# $scratch/job.sh:" && sed 's/^/#   /' "$scratch/job.sh"; fi

# Machines that are there would not hear of another command, and their store would no longer say how it ended.
if [ "$action" = launch ] && [ -z "$dry" ]; then
    case $(state) in
        GONE) ;;
        UNKNOWN) die "--name $name: the queue does not tell whether it is there; see $program status" ;;
        *) die "--name $name: is there already; first: $program delete" ;;
    esac
fi

# A watch that is started again finds its request, or how it ended, and must not begin anew.
if [ "$action" = launch ] || [ -n "$dry" ] || ! { gcloud storage ls "$store/status" >/dev/null 2>&1 || [ "$(state)" != GONE ]; }; then
    prepare
    create
fi
if [ "$action" = watch ]; then watch; elif [ -z "$dry" ]; then say "asked for; follow it with: $program status, logs, watch"; fi
