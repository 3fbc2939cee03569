# For people and checks on this node: 'ray status' and 'vllm' work in a login shell.
PATH=/opt/venvs/orchestrate/bin:$PATH
set -a
[ ! -r /etc/orchestrate/ray.env ] || . /etc/orchestrate/ray.env
RAY_ADDRESS=192.168.10.1:6379
set +a
