"""Where things are on a node: what more than one module has to agree on."""

from __future__ import annotations

#: The Python environment of every image.
VENV = "/opt/venvs/orchestrate"
#: The system's own Python, there from the first moment: VENV's layer may still be on its way. For
#: programs of the standard library alone.
PYTHON = "/usr/bin/python3"
#: Runs what uses accelerators, in the environment that the image needs for them (images/config).
WITH_ENVIRONMENT = "/usr/lib/orchestrate/with-environment"
#: Where models lie on compute nodes.
MODELS = "/var/lib/orchestrate/models"
#: The disk that keeps layers, where there is one: mounted by the initrd (images/initrd/init).
CACHE = "/run/orchestrate/cache"
#: Leads to the directories of compiled kernels, always by this name: caches hold absolute paths.
KERNELS = "/var/lib/orchestrate/kernels"
#: Where they lie without a disk.
KERNELS_IN_MEMORY = "/var/lib/orchestrate/kernels.memory"
#: What the control node gives to the others: models, images, boot documents.
FILES_ROOT = "/srv/orchestrate"
#: What the control node keeps when it restarts: leases, boots, logs of boots.
LASTING = "/var/lib/orchestrate/control"
#: In LASTING: the tables of Ray's head.
RAY_TABLES = "ray"

ETC = "/etc/orchestrate"
RAY_ENV = f"{ETC}/ray.env"
RAY_TOKEN = f"{ETC}/ray.token"
VLLM_ENV = f"{ETC}/vllm.env"

#: Where sshd listens.
SSH_PORT = 22
