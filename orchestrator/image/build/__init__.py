"""From a lock to a built image: fetch files into the Nix store, build, and list what exists."""
