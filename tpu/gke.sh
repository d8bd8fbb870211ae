#!/usr/bin/env bash
# A command of jaxgeom on one TPU slice of a GKE cluster.
set -euo pipefail
# shellcheck source=tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
usage: gke.sh cluster  --name N --project P --location L [--service-account EMAIL]
       gke.sh pool     --name N --project P --location L --cluster C --zone Z --type v5e|v5p|v6e --topology T
                       [--spot | --reservation R] [--service-account EMAIL] [--disk-size GB]
       gke.sh image    --project P --image I
       gke.sh launch   --name N --cluster C --project P --location L --pool POOL --type … --topology T --image I
                       --store gs://BUCKET/FOLDER [--tries N] [--every SECONDS] -- COMMAND…
       gke.sh manifest as launch; prints the JobSet and applies nothing
       gke.sh status|logs|delete --name N --cluster C --project P --location L
       gke.sh teardown --cluster C --project P --location L [--pool POOL]

  cluster   makes a cluster and puts the JobSet controller on it
  pool      adds the hosts of one slice; four chips a host; the disk (200 GB) holds
            the copy of STORE/work
  image     builds tpu/Dockerfile by Cloud Build and pushes it
  launch    starts COMMAND on all hosts of a slice, in a copy of STORE/work; with --out gs://…
            it keeps what it writes there itself
  delete    ends the job; checkpoints and logs stay in the store
  teardown  deletes the pool, or the cluster with all that is on it

  --dry-run                 print every command and the manifest, run none
TEXT
}

jobset_version=v0.12.0

(($#)) || { usage >&2 && exit 2; }
action=$1
shift
case $action in
    -h | --help) usage && exit 0 ;;
    cluster | pool | image | launch | manifest | status | logs | delete | teardown) ;;
    *) die "no action $action; see --help" ;;
esac
[ "${1:-}" != --help ] || { usage && exit 0; }

name='' project='' location='' cluster='' zone='' type='' topology='' spot='' reservation='' service_account='' image=''
pool='' store='' tries=8 every=300 disk_size=200
options name project location cluster zone type topology spot! reservation service_account image pool store tries every disk_size \
    -- "$@"
check_numbers 0 tries
check_numbers 1 every disk_size
scopes=--scopes=https://www.googleapis.com/auth/cloud-platform
who=()
[ -z "$service_account" ] || who=(--service-account="$service_account")

# Sets machine, accelerator, chips (of a host) and hosts.
shape() {
    case $type in
        v5e) machine=ct5lp-hightpu-4t accelerator=tpu-v5-lite-podslice ;;
        v5p) machine=ct5p-hightpu-4t accelerator=tpu-v5p-slice ;;
        v6e) machine=ct6e-standard-4t accelerator=tpu-v6e-slice ;;
        *) die "--type $type: one of v5e, v5p, v6e" ;;
    esac
    local slices='2x2 2x4 4x4 4x8 8x8 8x16 16x16' form='^([48]|1[26])x([48]|1[26])x([48]|1[26]|2[048])$' product
    if [ "$type" = v5p ]; then
        slices='2x2x1 2x2x2 2x2x4 2x4x4'
        # And of cubes of 4x4x4, sizes ascending, as many as there are in one slice.
        if [[ $topology =~ $form ]] && ((BASH_REMATCH[1] <= BASH_REMATCH[2] && BASH_REMATCH[2] <= BASH_REMATCH[3])) \
            && ((BASH_REMATCH[1] * BASH_REMATCH[2] * BASH_REMATCH[3] <= 6144)); then slices+=" $topology"; fi
    fi
    [[ $topology != *[!0-9x]* && " $slices " == *" $topology "* ]] \
        || die "--topology $topology: of $type one of $slices$([ "$type" != v5p ] || echo ', or ascending multiples of 4, as 4x4x8') is needed"
    product=$((${topology//x/*}))
    chips=4
    hosts=$((product / chips))
}

credentials() { run gcloud container clusters get-credentials "$cluster" --project="$project" --location="$location"; }

manifest() {
    local text args words key
    words=(--store "$store" --work /work --every "$every" --once --failed "\$(RESTARTS)" --worker "\$(WORKER)"
        --log /tmp/jaxgeom.log -- "${rest[@]}")
    ((hosts == 1)) || words+=(--distributed)
    # JSON is YAML, whatever the command holds; a $ of its own is none of Kubernetes' variables.
    args=$("${PYTHON:-python3}" -c '
import json, sys
own = sys.argv.index("--")
print(json.dumps([*sys.argv[1:own], *(word.replace("$", "$$") for word in sys.argv[own:])]))' "${words[@]}")
    local -A values=([NAME]=$name [TRIES]=$tries [HOSTS]=$hosts [CHIPS]=$chips [ACCELERATOR]=$accelerator
        [TOPOLOGY]=$topology [POOL]=$pool [IMAGE]=$image)
    text=$(<"$here/jobset.yaml")
    for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
    text=${text//"\${ARGS}"/"$args"} # last: the command may hold what looks like one of them
    # The first line is about the template.
    echo "${text#*$'\n'}"
}

case $action in
    cluster)
        need name project location
        check_names name
        run gcloud container clusters create "$name" --project="$project" --location="$location" --release-channel=regular \
            --machine-type=e2-standard-4 --num-nodes=1 "$scopes" "${who[@]}"
        cluster=$name
        credentials
        run kubectl apply --server-side \
            -f "https://github.com/kubernetes-sigs/jobset/releases/download/$jobset_version/manifests.yaml"
        ;;
    pool)
        need name project location cluster zone type topology
        check_names name
        shape
        [ -z "$spot" ] || [ -z "$reservation" ] || die "--spot and --reservation exclude each other"
        words=()
        [ -z "$spot" ] || words+=(--spot)
        [ -z "$reservation" ] || words+=(--reservation-affinity=specific --reservation="$reservation")
        ((hosts == 1)) || words+=(--tpu-topology="$topology")
        run gcloud container node-pools create "$name" --cluster="$cluster" --project="$project" --location="$location" \
            --node-locations="$zone" --machine-type="$machine" --num-nodes="$hosts" --disk-size="$disk_size" "${words[@]}" "$scopes" "${who[@]}"
        ;;
    image)
        need project image
        run gcloud builds submit --project="$project" --config="$here/image.yaml" --substitutions="_IMAGE=$image" "$here/.."
        ;;
    launch | manifest)
        need name pool type topology image store
        [ "$action" = manifest ] || need cluster project location
        check_names name pool
        [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9./:@_-]*$ ]] || die "--image $image: HOST/PATH:TAG is needed"
        check_store "$store"
        store=${store%/}
        shape
        ((${#rest[@]})) || die "no command after --, for example: -- jaxgeom study experiment.py --out $store/out"
        check_out "$hosts"
        if [ "$action" = manifest ]; then manifest && exit; fi
        credentials
        if [ -n "$dry" ]; then
            run gcloud storage rm "$store/status"
            run kubectl apply -f -
            manifest | sed 's/^/#   /'
        else
            # Applied again, a JobSet that has ended stays ended, and one of another command is refused.
            there=$(kubectl get jobset "$name" --ignore-not-found --output=name) \
                || die "--name $name: the cluster does not tell whether it is there; see $program status"
            [ -z "$there" ] || die "--name $name: is there already; first: $program delete"
            # A status of an earlier launch is no longer true.
            ! gcloud storage ls "$store/status" >/dev/null 2>&1 || gcloud storage rm "$store/status"
            manifest | kubectl apply -f -
        fi
        ;;
    status)
        need name cluster project location
        credentials
        run kubectl get jobset "$name"
        run kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=wide
        ;;
    logs)
        need name cluster project location
        credentials
        run kubectl logs --follow --tail=100 \
            --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete)
        need name cluster project location
        credentials
        run kubectl delete jobset "$name"
        ;;
    teardown)
        need cluster project location
        if [ -n "$pool" ]; then
            run gcloud container node-pools delete "$pool" --cluster="$cluster" --project="$project" \
                --location="$location" --quiet
        else
            run gcloud container clusters delete "$cluster" --project="$project" --location="$location" --quiet
        fi
        ;;
esac
