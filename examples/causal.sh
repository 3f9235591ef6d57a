#!/usr/bin/env bash
# Writes through one node and reads through another, with curl alone: the context makes the second node wait for the first.
# Usage: examples/causal.sh [URL1] [URL2]
set -euo pipefail
first=${1:-http://127.0.0.1:8082}
second=${2:-http://127.0.0.1:8086}

field() { sed -E "s/.*\"$1\":\"?([^\",}]*)\"?.*/\1/"; }

context=""
for word in one two three; do
  answer=$(curl -fsS -X PUT "$first/kvs/greeting" -H "X-Causal-Metadata: $context" -d "{\"value\":\"$word\"}")
  context=$(field causal-metadata <<<"$answer")
  read_back=$(curl -fsS "$second/kvs/greeting" -H "X-Causal-Metadata: $context" | field value)
  echo "wrote $word at $first, read $read_back at $second"
  [ "$read_back" = "$word" ]
done
