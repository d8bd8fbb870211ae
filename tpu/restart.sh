#!/usr/bin/env bash
# Runs one command of jaxgeom until it is done, through crashes and preemptions. It stands alone: machines get only it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: restart.sh [options] -- COMMAND…

Exit status of COMMAND → what happens:
  0             done
  2             a mistake of the user's, said on stderr: not started again
  130, 143      stopped: not started again here; the next start of this machine goes on. But one of several machines
                (--store, and --distributed in COMMAND) ends so where another was told to stop: it is started again
  anything else started again after 10, 20, 40, … at most 300 seconds; after --tries failures in a row it is given up.
                A failure after more than half an hour of work is the first of a new row.

  --store gs://…   where what is kept lies: work/ (copied here before the first start, back every --every seconds and
                   after every end), logs/, and status (the final exit status, after which nothing is started again).
                   A command with --out gs://… puts its own there: then work/ is only read
  --work DIR       where the command runs, the copy of STORE/work (default: here)
  --every SECONDS  between copies (default 300)
  --worker N       of several machines only 0 copies back and writes status (default 0)
  --log FILE       all output goes to this file too, which is copied to STORE/logs/
  --tries N        (default 8)
  --once           one start: starting again is another's affair, which counts the failures (a JobSet)
  --failed N       how often the command has failed before (a pod's restarts); waits before the first start too
  --first-wait S   (default 10)
  --dry-run        print every command, run none
TEXT
}

store='' work=. every=300 worker=0 log='' tries=8 failed=0 first_wait=10 dry='' once=''
while (($#)); do
    case $1 in
        --store | --work | --every | --worker | --log | --tries | --failed | --first-wait)
            (($# > 1)) || { echo "restart.sh: $1 needs a value" >&2; exit 2; }
            case $1 in
                --store) store=${2%/} ;;
                --work) work=$2 ;;
                --every) every=$2 ;;
                --worker) worker=$2 ;;
                --log) log=$2 ;;
                --tries) tries=$2 ;;
                --failed) failed=$2 ;;
                --first-wait) first_wait=$2 ;;
            esac
            shift 2
            ;;
        --dry-run) dry=1 && shift ;;
        --once) once=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        --) shift && break ;;
        *) echo "restart.sh: unknown option $1; see --help" >&2 && exit 2 ;;
    esac
done
(($#)) || { echo "restart.sh: no command given after --; see --help" >&2; exit 2; }
case $store in '' | gs://?*) ;; *) echo "restart.sh: --store $store is no gs:// path" >&2 && exit 2 ;; esac
for number in every worker tries failed first_wait; do
    [[ ${!number} =~ ^[0-9]{1,9}$ ]] || { echo "restart.sh: --${number/_/-} ${!number}: a whole number is needed" >&2; exit 2; }
done
every=$((10#$every)) worker=$((10#$worker)) tries=$((10#$tries)) failed=$((10#$failed)) first_wait=$((10#$first_wait))
((every > 0)) || { echo "restart.sh: --every 0: at least a second is needed" >&2; exit 2; }
[ -n "$store" ] || [ -d "$work" ] || { echo "restart.sh: --work $work: no such directory" >&2; exit 2; }
command=("$@")

# A command that writes to a bucket itself leaves nothing here to be copied back.
direct='' before=''
for word in "${command[@]}"; do
    case $before=$word in --out=gs://* | *=--out=gs://*) direct=1 ;; esac
    before=$word
done

# Of several machines all end where one is told to stop; of the others nobody starts the command again but this script.
several=''
[ -z "$store" ] || for word in "${command[@]}"; do [ "$word" != --distributed ] || several=1; done

say() { printf 'restart.sh: %s\n' "$*" >&2; }
run() { if [ -n "$dry" ]; then printf '%q ' "$@" && echo; else "$@"; fi; }

# What must not be copied: a lock is of one machine, and a checkpoint that is being written is renamed when it is whole.
unfinished='(^|.*/)(\.lock$|\.[0-9]+\.partial.*)'

pull() {
    [ -n "$store" ] || return 0
    # Once a machine: after that its own copy is the newer one.
    [ ! -e "$work/.copied" ] || return 0
    run mkdir -p "$work"
    # A store in which nothing was put yet has no work/ to copy.
    if [ -n "$dry" ] || gcloud storage ls "$store/work/" >/dev/null 2>&1; then
        run gcloud storage rsync --recursive "$store/work" "$work" || return 1
    fi
    run touch "$work/.copied"
}

push() {
    [ -n "$store" ] || return 0
    if [ "$worker" = 0 ] && [ -z "$direct" ]; then
        run gcloud storage rsync --recursive --exclude="$unfinished|^\.copied$" "$work" "$store/work" \
            || say "could not copy $work to $store/work; tried again in $every seconds"
    fi
    if [ -n "$log" ]; then
        run gcloud storage cp "$log" "$store/logs/worker-$worker.log" || say "could not copy $log to $store/logs"
    fi
}

finish() { # the final status, and what to say of it
    push
    say "$2"
    if [ -n "$store" ] && [ "$worker" = 0 ]; then
        printf '%s %s\n' "$1" "$2" | run gcloud storage cp - "$store/status" || say "could not write $store/status"
    fi
    exit "$1"
}

if [ -n "$dry" ]; then
    pull
    (cd "$work" 2>/dev/null || true && run "${command[@]}")
    push
    [ -z "$store" ] || run gcloud storage cp - "$store/status"
    exit 0
fi

[ -z "$log" ] || exec > >(trap '' TERM INT && exec tee -a "$log") 2>&1
if [ -n "$store" ] && kept=$(gcloud storage cat "$store/status" 2>/dev/null); then
    say "ended before: $kept (remove $store/status to start it again)"
    exit "${kept%% *}"
fi

child='' copier='' stopped='' signalled=''
stop() {
    stopped=1 signalled=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT
trap '[ -z "$copier" ] || kill "$copier" 2>/dev/null || true' EXIT

wait_for() { # a process; its exit status, however many signals come meanwhile
    local status
    while :; do
        signalled=''
        wait "$1" && status=0 || status=$?
        [ -n "$signalled" ] || return "$status"
    done
}

rest() { # before start number $1 + 1
    local seconds=$((first_wait << ($1 > 6 ? 5 : $1 - 1)))
    ((seconds <= 300)) || seconds=300
    [ -n "$stopped" ] || say "started again in $seconds seconds, after $1 failures"
    sleep "$seconds" >/dev/null 2>&1 &
    child=$!
    [ -z "$stopped" ] || stop # told while something was copied
    wait_for "$child" || true
    child=''
    [ -z "$stopped" ] || { say "stopped" && exit 143; }
}

until pull; do
    failed=$((failed + 1))
    if [ -n "$once" ] || ((failed >= tries)); then say "$store/work cannot be copied" && exit 1; fi
    rest "$failed"
done
((failed == 0)) || rest "$failed"
if [ -n "$store" ]; then
    (
        trap - EXIT TERM INT
        while sleep "$every" >/dev/null 2>&1; do push; done
    ) &
    copier=$!
fi

cd "$work"
work=$PWD
while :; do
    began=$SECONDS
    "${command[@]}" &
    child=$!
    [ -z "$stopped" ] || stop
    wait_for "$child" && status=0 || status=$?
    child=''
    if [ -n "$stopped" ]; then
        push
        say "stopped, with status $status"
        ((status == 0)) || exit 143
        finish 0 "done"
    fi
    case $status in
        0) finish 0 "done" ;;
        2) finish 2 "refused: a mistake in the command or its files; see the line above" ;;
        130 | 143) [ -n "$several" ] || { push && say "stopped by status $status" && exit "$status"; } ;;
    esac
    ((SECONDS - began < 1800)) || failed=0
    failed=$((failed + 1))
    say "ended with status $status after $((SECONDS - began)) seconds"
    [ -z "$once" ] || { push && exit "$status"; }
    ((failed < tries)) || finish "$status" "given up after $failed failures in a row"
    push
    rest "$failed"
done
