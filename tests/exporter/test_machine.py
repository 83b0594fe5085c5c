"""Behaviour of `exporter.machine` on the machine that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from actx.exporter import machine


def test_the_machine_is_described() -> None:
    cores = machine.usable_cores()
    assert set(cores) == os.sched_getaffinity(0)
    assert len(machine.governors()) == len(cores)
    assert all(machine.governors())
    assert machine.cpu_name()
    load = machine.load_average()
    assert load is not None
    assert len(load) == 3


def test_own_work_is_not_that_of_others_and_that_of_another_process_is() -> None:
    """Whatever else the machine does meanwhile: others work as long as this one's child does, and no more than all cores."""
    others = machine.Others()
    begin = time.perf_counter()
    code = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    found = others.cores()
    assert found is not None
    assert found * (time.perf_counter() - begin) > 0.4
    others = machine.Others()
    before, begin = time.process_time(), time.perf_counter()
    while time.process_time() - before < 0.5:
        pass
    found = others.cores()
    assert found is not None
    elapsed = time.perf_counter() - begin
    assert found * elapsed < len(machine.usable_cores()) * elapsed - 0.4
