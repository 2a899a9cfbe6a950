#!/bin/sh
# Agents for the dashboards: each sends a request, reads the stream, pauses, and sends the next. Every
# seventh request names a model that does not exist, so that the dashboards show errors.
#   sh agents.sh http://localhost:8000 4
set -eu
url=$1
agents=$2

send() {
  curl --silent --no-buffer --output /dev/null --max-time 30 "$url/v1/chat/completions" \
    -H 'Content-Type: application/json' -H "X-Request-Timestamp: $(date +%s.%N)" -d \
    "{\"model\":\"$1\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}],\"stream\":$2}" || true
}

agent() {
  while :; do
    for model in llama3.1-8b gpt-oss-120b gemma-4-31b llama3.1-8b gpt-oss-120b; do
      send "$model" true
      sleep 0.5
    done
    send llama3.1-8b false
    sleep 0.5
    send no-such-model true
    sleep 0.5
  done
}

trap 'trap "" TERM; kill 0; exit 0' TERM INT
while [ "$agents" -gt 0 ]; do
  agent &
  agents=$((agents - 1))
done
wait
