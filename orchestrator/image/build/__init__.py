"""From a lock to a built image: files into the Nix store, then Nix; and what is there of it."""
