#!/bin/sh
# Agents for the dashboards: each asks, reads the stream, thinks for a moment, asks again. Every seventh
# question names a model that does not exist, so that there are errors to be seen.
#   sh agents.sh http://localhost:8000 4
set -eu
url=$1
agents=$2

ask() {
  curl --silent --no-buffer --output /dev/null --max-time 30 "$url/v1/chat/completions" \
    -H 'Content-Type: application/json' -H "X-Request-Timestamp: $(date +%s.%N)" -d \
    "{\"model\":\"$1\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}],\"stream\":$2}" || true
}

agent() {
  while :; do
    for model in llama3.1-8b gpt-oss-120b gemma-4-31b llama3.1-8b gpt-oss-120b; do
      ask "$model" true
      sleep 0.5
    done
    ask llama3.1-8b false
    sleep 0.5
    ask no-such-model true
    sleep 0.5
  done
}

trap 'trap "" TERM; kill 0; exit 0' TERM INT
while [ "$agents" -gt 0 ]; do
  agent &
  agents=$((agents - 1))
done
wait
