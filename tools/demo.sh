#!/usr/bin/env bash
# `make demo`: build a profile's image, bring its cluster up, ask its model a question.
#
#   tools/demo.sh PROFILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=$1
orchestrate=.venv/bin/orchestrate

if [ "$(id -u)" != 0 ]; then
  printf 'demo: error: simulated machines need root (mounts, network namespaces, containers)\n' >&2
  printf '  Run: sudo make demo\n' >&2
  exit 1
fi

# The first question whose answer the profile's model is known to give.
question=$($orchestrate profile show --profile "$profile" --json | .venv/bin/python -c '
import json, pathlib, sys
model = json.load(sys.stdin)["profile"]["serving"]["model"]
print(json.loads(pathlib.Path("models", model, "answers.json").read_text())[0]["question"])
')

tools/image.sh "$profile"
tools/step "up: machines, Ray, model, checks" $orchestrate up --profile "$profile"
tools/step "ask: $question" $orchestrate ask --profile "$profile" "$question"

cat <<END

The cluster '$profile' runs: from nothing to an answer in $SECONDS s. Go on with:

  export PATH="\$PWD/.venv/bin:\$PATH" ORCHESTRATE_PROFILE=$profile
  orchestrate status                 what runs, and where
  orchestrate verify                 every check again; changes nothing
  orchestrate ask "$question"
  orchestrate sim shell compute0     look into a machine
  orchestrate down                   machines off, networks and mounts removed

docs/tutorial/first-cluster.md explains each step. Next, see it live, then load it in another terminal:
  orchestrate dashboard              prints an address for your browser: nodes, links, load, what limits
  orchestrate probe && orchestrate bench run    measures; the page names the cause meanwhile
END
