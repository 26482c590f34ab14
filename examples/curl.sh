#!/usr/bin/env bash
# No SDK at all:  sightline serve  ·  examples/curl.sh [PICTURE] [QUESTION]
set -euo pipefail
here=$(dirname "$0")
picture=${1:-$here/pictures/blue-square.jpg}
question=${2:-What colour is the square?}

# The picture goes in by standard input: as an argument it would be too long.
curl --silent --fail-with-body "${SIGHTLINE_URL:-http://127.0.0.1:8000/v1}/chat/completions" \
  -H 'Content-Type: application/json' --data-binary @- <<END
{"model": "peek", "temperature": 0, "messages": [{"role": "user", "content": [
  {"type": "image", "image": "$(base64 <"$picture" | tr -d '\n')"},
  {"type": "text", "text": "$question"}]}]}
END
echo
