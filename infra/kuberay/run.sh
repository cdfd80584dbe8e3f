#!/usr/bin/env bash
# Run one verb on a cluster of its own and follow its log: infra/kuberay/run.sh OVERLAY VERB, e.g. run.sh gpu translate.
# Exit 0: done (summary.json says whether complete or partial); 1: failed or stopped. Run again, it resumes.
# To stop it: kubectl -n sar2eo delete rayjob VERB. Ctrl-C here ends only the following.
set -euo pipefail
usage() { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
[ $# -eq 2 ] || usage
overlay=$1 verb=$2 here=$(cd "$(dirname "$0")" && pwd)
[ -d "$here/overlays/$overlay/jobs" ] || usage
k() { kubectl --namespace sar2eo "$@"; }
status() { k get rayjob "$verb" -o jsonpath="{.status.$1}"; }

k delete rayjob "$verb" --ignore-not-found --wait
kubectl create -k "$here/overlays/$overlay/jobs" -l "sar2eo/verb=$verb"
k patch rayjob "$verb" --type merge -p '{"spec":{"suspend":false}}'
seen=none
while :; do
  now=$(status jobDeploymentStatus)
  [ "$now" = "$seen" ] || echo "$verb: ${now:-waiting for the operator}" >&2
  seen=$now
  case $now in
    Running) k logs --follow --all-containers "job/$verb" || true ;;   # ends with the attempt
    Complete) break ;;
    Failed) echo "$verb: $(status reason): $(status message)" >&2; exit 1 ;;
  esac
  sleep "${POLL_S:-5}"
done
[ "$(status jobStatus)" = SUCCEEDED ] || { echo "$verb: $(status jobStatus)" >&2; exit 1; }
