"""Commands that change a node, as data: what they are made from, and that they undo it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.changes import (
    Edit,
    NotHere,
    bucket,
    files,
    files_change,
    files_command,
    queue_change,
)
from orchestrator.performance.prove.claim import Claim
from orchestrator.performance.prove.guards import Site, guarded
from orchestrator.performance.prove.knobs import KNOBS, CommandKnob, QuotaKnob
from orchestrator.performance.prove.trials import End, Links
from orchestrator.performance.results.bench import Measured, Workload
from orchestrator.performance.results.probe import Spread

TC = ("tc", "-n", "space")
FREE = '[{"kind": "noqueue", "handle": "0:", "root": true, "options": {}}]'
MANY = '[{"kind": "mq", "handle": "0:", "root": true}, {"kind": "fq_codel", "handle": "0:"}]'
LIMITED = json.dumps(
    [{"kind": "tbf", "handle": "8001:", "root": True,
      "options": {"rate": 1250000, "burst": 16384, "lat": 50000}}]
)  # fmt: skip


@pytest.mark.parametrize("shown", [FREE, MANY, "[]", ""])
def test_a_link_without_a_queue_of_its_own_gets_the_kernels_back(shown: str) -> None:
    found = queue_change(TC, "eth0", shown, bucket(1e6))
    assert found.apply[0][:8] == (*TC, "qdisc", "replace", "dev", "eth0", "root")
    assert "qdisc delete" in found.undo[0][2]


def test_a_throttled_link_is_throttled_as_before() -> None:
    found = queue_change(TC, "eth0", LIMITED, bucket(1e6))
    assert found.undo == (
        (*TC, "qdisc", "replace", "dev", "eth0", "root",
         "tbf", "rate", "10000000bit", "burst", "16384", "latency", "50000us"),
    )  # fmt: skip


@pytest.mark.parametrize("shown", ['[{"kind": "htb", "handle": "1:", "root": true}]', "no", "[1]"])
def test_a_queue_that_could_not_be_given_back_is_left_alone(shown: str) -> None:
    with pytest.raises(NotHere):
        queue_change(TC, "eth0", shown, bucket(1e6))


HERE = Site("here", list, ("python3", "-I", "-S"))


def test_clocks_in_files_become_lower_and_what_they_were(tmp_path: Path) -> None:
    clocks = {"cpu0": 3000, "cpu1": 2500, "cpu2": 1000}
    for name, value in clocks.items():
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "cpu3").write_text("unknown\n")
    with guarded() as guards:
        was = files(guards.run(HERE, files_command(f"{tmp_path}/cpu*")).out)
        assert was == {f"{tmp_path}/{name}": value for name, value in clocks.items()}
        guards.apply({"here": files_change(2000, was)}, {"here": HERE}, 60)
        assert [int((tmp_path / name).read_text()) for name in clocks] == [2000, 2000, 1000]
        guards.undo()
        assert [int((tmp_path / name).read_text()) for name in clocks] == [3000, 2500, 1000]


def test_no_knob_resets_a_card_and_each_undoes_what_it_sets() -> None:
    commands = [each for each in KNOBS if isinstance(each, CommandKnob)]
    assert commands
    for each in commands:
        assert each.found("0, 1980\n1, 1980\nN/A, [N/A]\n") == {"0": 1980, "1": 1980}
        change = each.change(2.0, {"0": 1980})
        (set_,), (undo,) = change.apply, change.undo
        assert "990,990" in " ".join(set_) and "CARD" not in " ".join((*set_, *undo))
        kind = set_[-1].partition("-clocks")[0].removeprefix("--lock-")
        assert undo[-1] == f"--reset-{kind}-clocks"
        assert not {"--gpu-reset", "-r"} & {*set_, *undo}


def test_a_quota_is_made_smaller_where_there_is_one_and_put_back() -> None:
    (knob,) = [each for each in KNOBS if isinstance(each, QuotaKnob)]
    one, other = knob.units
    was = knob.found(f"{one} 1min 1.500s\n{other} infinity\nelse.service 1s\n{one}x 1s\n")
    assert was == {one: 6150}
    assert knob.found(f"{one} infinity\n{other} \n") == {}
    assert knob.change(2.0, was) == Edit(
        (("systemctl", "set-property", "--runtime", one, "CPUQuota=3075%"),),
        (("systemctl", "set-property", "--runtime", one, "CPUQuota=6150%"),),
    )


def test_a_link_that_is_slower_than_any_dose_is_not_made_faster() -> None:
    script = f"echo '{LIMITED}'"
    end = End(HERE, "x0", ("sh", "-c", script, "sh"))
    t = Spread(1, 1, 1, 1)
    load = Measured(Workload("it", 1, 1, 1, 1), t, t, t, t, t, t, None, 1, 0, ())
    found = Claim(load, "decode", Cause.LINK_BANDWIDTH, 0.5, {}, "")
    with guarded() as guards, pytest.raises(NotHere, match="none is slower"):
        Links(found, [end], 125e6).available(guards)
