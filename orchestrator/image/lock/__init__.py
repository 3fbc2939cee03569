"""From image.yml to lock.json: apt and pip resolve, for the image instead of this machine."""
