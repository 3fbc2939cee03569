# For login shells on this node: the commands 'ray status' and 'vllm' work.
PATH=/opt/venvs/orchestrate/bin:$PATH
set -a
[ ! -r /etc/orchestrate/ray.env ] || . /etc/orchestrate/ray.env
RAY_ADDRESS=192.168.10.1:6379
set +a
