"""Two machines of strangers with the image's own vLLM and Ray, one model over both: asked over SSH
by an ordinary account that has the wheel alone."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT
from support.account import Machine, machine, until
from support.boxes import OWNER, VENV, Box, boxes, reached_as
from support.flake import built
from support.installed import installed
from support.strangers import VISITOR, Strangers, attach, strangers

from orchestrator.core.waiting import as_long_as
from orchestrator.models import catalog
from orchestrator.provision.machines import netns

pytestmark = [pytest.mark.nix, pytest.mark.long]

MODEL, SECRET = "known-answers", "sk-very-secret"
#: Seconds for vLLM to load, on few and busy cores.
PATIENCE = 900.0
SERVE = (
    *("vllm", "serve", f"/home/{OWNER}/model", "--served-model-name", MODEL),
    *("--tensor-parallel-size", "2", "--dtype", "bfloat16", "--max-model-len", "256"),
    *("--max-num-seqs", "8", "--enforce-eager"),
)
RAY_PORT = 6379
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"/home/{OWNER}/token"}
BRIEF = """
bench:
  repeats: 2
  workloads:
    brief: { prompt_tokens: 32, output_tokens: 16, requests: 4, concurrency: 2 }
"""


@dataclass
class Cluster:
    """The machines, and who attaches."""

    one: Box
    two: Box
    desk: Strangers
    space: str
    logs: Path

    def attach(self, *words: str) -> tuple[dict[str, Any], str]:
        return attach(self.desk, self.url, "--key-env", "K", *words, K=SECRET)

    @property
    def url(self) -> str:
        return f"http://{self.one.address}:8000"

    def left(self) -> list[str]:
        """What strangers could have left: files of the owner's that are not vLLM's or Ray's, and
        processes of a login."""
        found = []
        for box in (self.one, self.two):
            files = box.run("find", "/tmp", f"/home/{OWNER}", "/dev/shm", "-xdev", "-type", "f")
            found += [f"{box.name} {each}" for each in files.splitlines() if " ray" not in each]
            shown = box.run("sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null | sort | uniq -c")
            found += [f"{box.name} {line}" for line in shown.splitlines() if "sshd" in line]
        return found

    @contextmanager
    def serving(self, *flags: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """vLLM's server on the first machine, when it answers; the others' ranks are there."""
        own = {"VLLM_HOST_IP": self.one.address, "GLOO_SOCKET_IFNAME": "eth0", **env}
        words = [*SERVE, "--host", "0.0.0.0", "--port", "8000", *flags]
        log = self.logs / "one"
        with self.one.running(log, *words, VLLM_API_KEY=SECRET, **own) as server:

            def loads() -> bool:
                assert server.poll() is None, log.read_text()[-4000:]
                try:
                    with netns.entered(self.space):
                        socket.create_connection((self.one.address, 8000), 5).close()
                        return False
                except OSError:
                    return True

            assert not as_long_as(loads, PATIENCE, 1.0), log.read_text()[-4000:]
            yield server


@pytest.fixture(scope="module")
def cluster(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = tmp_path_factory.mktemp("boxes")
    space = "attach-desk"
    with ExitStack() as stack:
        # Outside pytest's own directories, which only root may enter.
        home = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
        stack.callback(lambda: subprocess.run(["rm", "-r", home], check=True))
        home.chmod(0o755)
        program = installed(home)
        netns.create(space)
        stack.callback(netns.delete, space)
        (place / "desk").mkdir()
        made = stack.enter_context(machine(place / "desk"))
        inside = ["nsenter", f"--net={netns.DIRECTORY / space}", *made.inside]
        desk = stack.enter_context(strangers(Machine(inside), program))
        key = desk.machine.sh(f"cat /home/{VISITOR}/.ssh/id_ed25519.pub")
        one, two = stack.enter_context(boxes(root, place, space, ["one", "two"], key))
        for name, lines in zip(
            ("config", "known"), reached_as({"one": one, "two": two}), strict=True
        ):
            desk.machine.sh('printf %s "$2" >>"$1"', f"/home/{VISITOR}/.ssh/{name}", lines)
        model = built(f"{PROJECT}#models.{MODEL}", place / "model")
        for box in (one, two):
            pack = subprocess.run(
                ["tar", "-C", model, "-chf", "-", "."], stdout=subprocess.PIPE, check=True
            )
            unpack = "mkdir model && tar -C model --no-same-permissions -xf - && chmod -R u+w model"
            argv = box.argv("sh", "-c", f"cd /home/{OWNER} && {unpack}")
            subprocess.run(argv, input=pack.stdout, check=True)
        (place / "logs").mkdir()
        yield Cluster(one, two, desk, space, place / "logs")


def with_known_answers(cluster: Cluster, path: str, text: str, most: int = 9) -> None:
    """Put the model's own questions, and a brief load, into a profile of the visitor's."""
    text = text.partition("  # Questions")[0] + "  prompts:\n"
    for each in catalog.find(MODEL).answers[:most]:
        text += f"    - {json.dumps({'question': each.question, 'contains': each.answer})}\n"
    script = 'printf %s "$2" >"$1" && chown "$3" "$1"'
    cluster.desk.machine.sh(script, path, text + BRIEF, VISITOR)


def test_one_model_over_two_machines_by_vllms_own_executor(cluster: Cluster) -> None:
    over = ["--nnodes", "2", "--master-addr", cluster.one.address, "--master-port", "29555"]
    over += ["--distributed-executor-backend", "mp"]
    words = [*SERVE, *over, "--node-rank", "1", "--headless"]
    own = {"VLLM_HOST_IP": cluster.two.address, "GLOO_SOCKET_IFNAME": "eth0"}
    with (
        cluster.two.running(cluster.logs / "two", *words, **own),
        cluster.serving(*over, "--node-rank", "0"),
    ):
        before = cluster.left()
        found, text = cluster.attach("--node", "one", "--node", "two")
        document = yaml.safe_load(text)
        assert [(n["name"], n["ranks"]) for n in document["nodes"]] == [("one", 1), ("two", 1)]
        assert [n["address"] for n in document["nodes"]] == [
            cluster.one.address,
            cluster.two.address,
        ]
        serving = document["serving"]
        assert (serving["model"], serving["tensor_parallel"]) == (MODEL, 2)
        titles = [title for node in found["nodes"] for title in node["ranks"]]
        assert [title.rpartition("_")[2] for title in titles] == ["TP0", "TP1"]
        assert (found["ray"], found["unknown"]) == (None, [])
        _, alone = cluster.attach("--node", "one")
        assert "the flags make 2, on these nodes 1 were seen" in alone

        path = str(found["profile"])
        with_known_answers(cluster, path, text)
        shown = cluster.desk.ask("status", "--profile", path, K=SECRET).stdout
        assert shown.count("1 of 1") == 2, shown
        report = cluster.desk.json("verify", "--profile", path, K=SECRET)
        assert report["ok"], report
        brief = ("--profile", path, "--workload", "brief")
        done = cluster.desk.json("bench", "run", *brief, K=SECRET)
        assert done["state"] == "complete", done
        run = cluster.desk.json("bench", "show", "--profile", path, K=SECRET)["run"]
        assert {each["node"] for each in run["series"]} == {"one", "two", "endpoint"}
        nodes = ("--node", "one", "--node", "two", "--key-env", "K", "--name", "doctor")
        page = cluster.desk.ask("doctor", cluster.url, *nodes, K=SECRET)
        assert "What limits, and what to change first" in page.stdout, page.stderr
        assert "single stream" in page.stdout
        assert any(cluster.left() == before for _ in until(60)), (before, cluster.left())
        assert SECRET not in json.dumps([found, report, done, run]) + text + page.stdout


@contextmanager
def ray(cluster: Cluster) -> Iterator[None]:
    """Ray on both machines, with its token, for the body."""
    start = [f"{VENV}/bin/python", "-m", "ray.scripts.scripts", "start", "--num-gpus=1"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    head = f"{cluster.one.address}:{RAY_PORT}"
    ends = {
        cluster.one: ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"],
        cluster.two: [f"--address={head}"],
    }
    stop = [f"{VENV}/bin/python", "-m", "ray.scripts.scripts", "stop", "--force"]
    try:
        for box, words in ends.items():
            box.run("sh", "-c", f"umask 077 && echo {'0123456789abcdef' * 4} >$RAY_AUTH_TOKEN_PATH",
                    **TOKEN)  # fmt: skip
            box.run(*start, f"--node-ip-address={box.address}", *words, **TOKEN)
        yield
    finally:
        for box in ends:
            box.run(*stop)


def test_one_model_over_two_machines_by_ray_with_its_token(cluster: Cluster) -> None:
    flags = ("--distributed-executor-backend", "ray")
    address = f"{cluster.one.address}:{RAY_PORT}"
    with ray(cluster), cluster.serving(*flags, RAY_ADDRESS=address, **TOKEN):
        before = cluster.left()
        found, text = cluster.attach("--node", "one", "--node", "two")
        assert any(cluster.left() == before for _ in until(60)), (before, cluster.left())
        asked = found["ray"]
        assert asked["error"] == "" and asked["address"] == address
        assert [
            (node["address"], node["alive"], node["head"], node["resources"]["GPU"])
            for node in sorted(asked["nodes"], key=lambda each: str(each["address"]))
        ] == [(cluster.one.address, True, True, 1.0), (cluster.two.address, True, False, 1.0)]
        assert sorted(each["address"] for each in asked["ranks"]) == [
            cluster.one.address,
            cluster.two.address,
        ]
        assert [node["ranks"] for node in yaml.safe_load(text)["nodes"]] == [1, 1]
        assert found["unknown"] == []
        assert "0123456789abcdef" * 4 not in json.dumps(found) + text

        _, alone = cluster.attach("--node", "one")
        assert f"add --node {cluster.two.address}" in alone

        path = str(found["profile"])
        with_known_answers(cluster, path, text, most=1)
        report = cluster.desk.json("verify", "--profile", path, K=SECRET)
        assert report["ok"], report
        passed = [(check["name"], check["node"]) for check in report["checks"] if check["ok"]]
        for name in ("alive in Ray", "ranks by Ray"):
            assert {(name, "one"), (name, "two")} <= set(passed), report
        assert ("Ray's nodes", "nodes") in passed

        # Somebody whom Ray's token is closed to.
        guest = text
        for name in ("one", "two"):
            guest = guest.replace(f'host: "{name}"', f'host: "guest-{name}"')
            assert f'"guest-{name}"' in guest
        script = 'printf %s "$2" >"$1" && chown "$3" "$1"'
        cluster.desk.machine.sh(script, "/home/guest.yml", guest, VISITOR)
        shown = cluster.desk.ask("status", "--profile", "/home/guest.yml", K=SECRET).stdout
        assert f"Ray  Ray at {address} did not let this user in" in shown, shown

        cluster.two.run("sh", "-c", "kill $(pgrep -x raylet)")
        dead = f"{cluster.two.address} (two): dead"

        def says() -> str:
            return cluster.desk.ask("status", "--profile", path, K=SECRET).stdout

        assert any(dead in says() for _ in until(120)), says()
        report = cluster.desk.json("verify", "--profile", path, K=SECRET)
        failed = {(check["name"], check["node"]) for check in report["checks"] if not check["ok"]}
        assert {("alive in Ray", "two"), ("Ray's nodes", "nodes")} <= failed, report
