#!/usr/bin/env bash
# Kills a node while keys are written, and shows that none is lost. Needs a cluster: kvctl cluster up
# Usage: examples/failover.sh [KVCTL]
set -euo pipefail
read -r -a kvctl <<<"${1:-kvctl}"

for number in $(seq 1 20); do
  [ "$number" = 10 ] && "${kvctl[@]}" node kill bob >/dev/null
  "${kvctl[@]}" put "failover-$number" "$number" --via alice >/dev/null
done
for number in $(seq 1 20); do
  [ "$("${kvctl[@]}" get "failover-$number" --via carol)" = "$number" ]
done
"${kvctl[@]}" node start bob >/dev/null
echo "20 keys written, 20 read back, with bob killed half way"
