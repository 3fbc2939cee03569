#!/bin/bash
# Forecasts that are sealed before their measurement, of an engine on a card, as a user makes them.
#
#     benchmarks/sealed_cards.sh MODEL OUT [FLAG...]     MODEL, FLAGs: as `vllm serve` takes them
#
# Wants `vllm` for python3, this checkout's dependencies, no network, no root. It serves the model, attaches to it,
# probes the card and the engine, and runs loads whose forecasts `bench run` seals first. Leaves nothing running.
# OUT gets a transcript, and the state directory with the runs; benchmarks/accuracy.py adds a run to the repository.
set -euo pipefail
model=$1 out=$2
shift 2
mkdir -p "$out"
checkout=$(cd "$(dirname "$0")/.." && pwd)
export ORCHESTRATE_STATE=$out/state VLLM_NO_USAGE_STATS=1 PYTHONPATH=${PYTHONPATH:-}:$checkout
name=$(basename "$model") port=18001 url=http://127.0.0.1:18001
profile=$out/$name.yml
orchestrate() { python3 -m orchestrator "$@"; }

python3 -m vllm.entrypoints.cli.main serve "$model" --host 127.0.0.1 --port "$port" "$@" >"$out/server.log" 2>&1 &
server=$!
trap 'kill "$server" && wait "$server" || true' EXIT
for _ in $(seq 300); do
  kill -0 "$server" || { tail -n 40 "$out/server.log"; exit 1; }
  python3 -c "import urllib.request; urllib.request.urlopen('$url/v1/models', timeout=2)" 2>/dev/null && break
  sleep 1
done

{
  date
  orchestrate attach "$url" --node localhost --name "$name" --out "$profile" --force
  # Weights that are made up (--load-format dummy) know no capital, and are not exact to the last digit.
  sed -i '/^verification:/,$d' "$profile"
  cat >>"$profile" <<'YAML'
verification: { logprob_tolerance: 1 }
bench:
  repeats: 4
  workloads:
    alone-192: { prompt_tokens: 192, output_tokens: 48, requests: 6, concurrency: 1 }
    alone-576: { prompt_tokens: 576, output_tokens: 48, requests: 6, concurrency: 1 }
    alone-1152: { prompt_tokens: 1152, output_tokens: 40, requests: 6, concurrency: 1 }
    three: { prompt_tokens: 112, output_tokens: 64, requests: 12, concurrency: 3 }
    five: { prompt_tokens: 416, output_tokens: 40, requests: 20, concurrency: 5 }
    many: { prompt_tokens: 144, output_tokens: 48, requests: 72, concurrency: 24 }
YAML
  cat "$profile"
  date
  timeout 120 python3 -m orchestrator probe --profile "$profile" || true
  date
  orchestrate probe --only engine --seconds 90 --profile "$profile"
  date
  orchestrate bench run --profile "$profile" --workload alone-192 --workload alone-576 --workload alone-1152 \
    --workload three --workload five --workload many
  date
  orchestrate bench accuracy --profile "$profile"
} >"$out/transcript.txt" 2>&1
