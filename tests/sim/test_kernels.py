"""Compiled kernels of one node reach the other at its next boot, over the cluster itself."""

from __future__ import annotations

from support.sim import Sim

CACHES = """\
  compile_cache:
    max_size: 1MiB
    directories: [{ variable: SOME_CACHE_DIR, what: "a test's" }]
"""
FILE = "/var/lib/orchestrate/kernels/SOME_CACHE_DIR/0123.cache"
AS_SERVICE = ["setpriv", "--reuid=compute", "--regid=compute", "--clear-groups"]


def test_what_one_node_compiled_the_other_has_after_its_next_boot(spendable: Sim) -> None:
    sim = spendable
    text = sim.profile.read_text()
    assert "  port: 8000" in text
    sim.profile.write_text(text.replace("  port: 8000", CACHES + "  port: 8000", 1))
    try:
        sim.run("up", "--until", "ray")
        environment = sim.shell("compute1", "cat", "/etc/orchestrate/ray.env")
        assert f'SOME_CACHE_DIR="{FILE.rpartition("/")[0]}"' in environment
        assert "SOME_CACHE_DIR" not in sim.shell("control", "cat", "/etc/orchestrate/ray.env")
        nothing = sim.run("image", "warm", ok=False)
        assert "compiled nothing yet" in nothing.stderr
        sim.enter("compute0", *AS_SERVICE, "tee", FILE, stdin="kernel")
        taken = sim.json("image", "warm")
        assert taken["changed"]
        assert taken["fits"] == ["compute0", "compute1"]
        assert not sim.json("image", "warm")["changed"]
        sim.run("up", "--until", "base")
        sim.shell("compute1", "test", "!", "-e", FILE)  # a running node stays as it is
        sim.run("node", "restart", "compute1", "--wait")
        sim.run("up", "--until", "base")
        assert sim.shell("compute1", "cat", FILE) == "kernel"
        assert sim.shell("compute1", "stat", "-c", "%U %a", FILE).split() == ["compute", "600"]
        said = sim.shell("compute1", "journalctl", "-u", "orchestrate-kernels", "-o", "cat")
        assert f"filled from the warm cache {taken['cache']['sha256'][:12]}: 1 files" in said
        assert sim.json("image", "warm", "--remove")["removed"]
    finally:
        sim.profile.write_text(text)
