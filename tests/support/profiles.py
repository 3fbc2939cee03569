"""A small checkout with one right profile, to break in one place a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROFILE = """\
name: small
image: plain
machines: manual
networks:
  lan: {subnet: 10.0.0.0/24}
  usb4: {subnet: 10.0.1.0/30}
boot: {network: lan}
control:
  name: head
  links:
    lan: {interface: enx8cae4cf44e21, mac: 8C:AE:4C:F4:4E:21, address: 10.0.0.1}
compute_nodes:
  - name: left
    accelerators: 1
    links:
      lan: {interface: enp5s0, mac: d8:bb:c1:a2:3e:a3, address: 10.0.0.100}
      usb4: {interface: thunderbolt0, address: 10.0.1.1}
  - name: right
    accelerators: 1
    links:
      lan: {interface: enp6s0, mac: d8:bb:c1:9b:84:8b, address: 10.0.0.101}
      usb4: {interface: thunderbolt1, address: 10.0.1.2}
users:
  service: compute
  accounts:
    - {name: compute, uid: 1000}
    - {name: ada, uid: 1001, keys: ["ssh-ed25519 AAAAC3Nza ada@laptop"]}
ray:
  network: lan
  port: 6379
  dashboard_port: 8265
  object_store_memory: 1.5GiB
  env: {}
serving:
  model: tiny
  port: 8000
  endpoint_port: 8080
  args: {dtype: half}
verification: {repeats: 3}
"""

CONFIG = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
}


def make_checkout(root: Path, profile: str = PROFILE, config: dict[str, Any] = CONFIG) -> Path:
    """Write the checkout below ``root``; returns its profile's file."""
    for directory in ("profiles", "images/plain", "models/tiny"):
        (root / directory).mkdir(parents=True)
    (root / "images/plain/image.yml").write_text("description: nothing special\n")
    (root / "models/tiny/model.json").write_text('{"description": "small"}')
    (root / "models/tiny/config.json").write_text(json.dumps(config))
    file = root / "profiles" / "small.yml"
    file.write_text(profile)
    return file
