# What the launchers share; sourced by them, and by nothing else.
# shellcheck shell=bash

program=${0##*/}
# shellcheck disable=SC2034 # the launchers use it
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry=''

die() {
    echo "$program: $*" >&2
    exit 2
}

say() { printf '%s: %s\n' "$program" "$*" >&2; }

# Runs a command; with --dry-run prints it instead, so that it can be pasted into a shell.
run() {
    if [ -n "$dry" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# need NAME…: options that must have been given; option --some-name is kept in some_name.
need() {
    local wanted # its name must be none that a caller uses, here and below: `name` is one
    for wanted in "$@"; do
        [ -n "${!wanted:-}" ] || die "--${wanted//_/-} is missing; see $program --help"
    done
}

# options ALLOWED… -- ARGUMENTS…: reads `--name value` into variables; `dry_run` and names ending in `!` take no value.
# What follows `--` among the arguments goes to the array `rest`.
options() {
    local -A takes=()
    local option
    while [ "$1" != -- ]; do
        takes[${1%!}]=$([ "${1%!}" = "$1" ] && echo value || echo nothing)
        shift
    done
    shift
    rest=()
    while (($#)); do
        case $1 in
            --) shift && rest=("$@") && return ;;
            --dry-run) dry=1 && shift && continue ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        option=${1#--}
        option=${option//-/_}
        [ "--${option//_/-}" = "$1" ] && [ -n "${takes[$option]:-}" ] || die "unknown option $1; see $program --help"
        if [ "${takes[$option]}" = nothing ]; then
            printf -v "$option" 1 && shift
        else
            # An empty one is a variable that was not set: without --pool a teardown would be of the cluster.
            (($# > 1)) && [ -n "$2" ] || die "$1 needs a value"
            printf -v "$option" %s "$2" && shift 2
        fi
    done
}

# check_names NAME…: options whose value is a name that both Cloud TPU and Kubernetes take.
check_names() {
    local checked
    for checked in "$@"; do
        [[ ${!checked} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] \
            || die "--$checked ${!checked}: at most 40 of a-z, 0-9 and -, from a letter on"
    done
}

# check_numbers LEAST NAME…: options that are whole numbers.
check_numbers() {
    local least=$1 checked
    for checked in "${@:2}"; do
        if ! [[ ${!checked} =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((${!checked} < least)); then
            die "--${checked//_/-} ${!checked}: a whole number from $least on is needed"
        fi
    done
}

# check_out HOSTS: what the command writes must be seen by all hosts, and of several each has a work/ of its own.
check_out() {
    local word before='' out=''
    for word in "${rest[@]}"; do
        case $before in --out) out=$word ;; esac
        case $word in --out=*) out=${word#--out=} ;; esac
        before=$word
    done
    # Left out, it is a folder of a study's: runs/NAME.
    [ -n "$out" ] || [ "${rest[*]:0:2}" != 'jaxgeom study' ] || out=runs/NAME
    case $out in
        '' | gs://*) ;;
        *) (($1 == 1)) || die "--out $out: of several hosts none sees another's disk; give --out gs://…" ;;
    esac
}

check_store() { [[ $1 =~ ^gs://[^/]+/.+ ]] || die "--store $1: give a folder of a bucket, gs://BUCKET/FOLDER"; }
