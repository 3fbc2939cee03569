#!/usr/bin/env bash
# Fetch and build the image that a profile names: tools/image.sh PROFILE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
orchestrate=.venv/bin/orchestrate
image=$($orchestrate profile show --profile "$1" --json |
  .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["profile"]["image"])')
tools/step "fetch $image: packages and wheels, by hash" $orchestrate image fetch "$image"
tools/step "build $image: in Nix's sandbox, without network" $orchestrate image build "$image"
