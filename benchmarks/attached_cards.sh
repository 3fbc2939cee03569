#!/bin/bash
# A cluster that others run, on one machine with accelerators: attach, verify, doctor, and what sampling costs.
#
#     benchmarks/attached_cards.sh MODEL OUT [FLAG...]     MODEL, FLAGs: as `vllm serve` takes them
#
# Wants `vllm` and `orchestrate` in PATH (an installed wheel will do), nvidia-smi or the kernel's own
# drivers, no network, no root. It starts one server on the first card and one on two cards, one after
# the other, and leaves nothing running. OUT gets a transcript and JSON of each.
#
# What sampling costs: the same load with samplers on this machine (a profile with the node) and without
# (a profile without nodes), in turns; `orchestrate bench compare` says what differs and how sure it is.
set -euo pipefail
model=$1 out=$2
shift 2
mkdir -p "$out"
export ORCHESTRATE_STATE=$out/state VLLM_NO_USAGE_STATS=1
port=18001 url=http://127.0.0.1:18001

serve() { # serve WIDTH FLAG...
  local width=$1
  shift
  vllm serve "$model" --host 127.0.0.1 --port "$port" --tensor-parallel-size "$width" "$@" >"$out/server-$width.log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    kill -0 "$server" || { tail -n 40 "$out/server-$width.log"; exit 1; }
    python3 -c "import urllib.request; urllib.request.urlopen('$url/v1/models', timeout=2)" 2>/dev/null && return
    sleep 1
  done
  echo "no answer within 600 s" && exit 1
}

end() {
  [ -z "${server:-}" ] || { kill "$server" && wait "$server" || true; }
  server=
}
trap end EXIT

look() { # look WIDTH: the transcript of a user, then documents
  local width=$1 name=cards-$1
  {
    time orchestrate doctor "$url" --node localhost --name "$name"
    orchestrate attach "$url" --node localhost --name "$name" --out "$out/$name.yml" --force
    orchestrate verify --profile "$out/$name.yml"
  } >"$out/transcript-$width.txt" 2>&1 || true
  orchestrate doctor "$url" --node localhost --name "$name" --json >"$out/doctor-$width.json" || true
  nvidia-smi >"$out/nvidia-smi-$width.txt" 2>&1 || true
}

cost() { # the same load with and without samplers, in turns
  orchestrate attach "$url" --name unsampled --out "$out/unsampled.yml" --force >/dev/null
  orchestrate attach "$url" --node localhost --name sampled --out "$out/sampled.yml" --force >/dev/null
  # Weights that are made up (--load-format dummy) know no capital, and are not exact to the last digit.
  sed -i '/^verification:/,$d' "$out/unsampled.yml" "$out/sampled.yml"
  echo 'verification: { logprob_tolerance: 1 }' | tee -a "$out/unsampled.yml" >>"$out/sampled.yml"
  for _ in 1 2 3; do
    for name in unsampled sampled; do
      orchestrate bench run --profile "$out/$name.yml" --workload "single stream" --workload "8 at once" \
        --repeats 4 --json >>"$out/cost-$name.jsonl"
    done
  done
  for name in unsampled sampled; do
    echo "== $name"
    for run in $(orchestrate bench ls --profile "$out/$name.yml" --json | python3 -c "import json, sys; print(*(r['id'] for r in json.load(sys.stdin)))"); do
      orchestrate bench show "$run" --profile "$out/$name.yml"
    done
  done >"$out/cost.txt"
}

serve 1 "$@"
look 1
cost
end
if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ]; then
  serve 2 "$@"
  look 2
  end
fi
echo "done: $out"
