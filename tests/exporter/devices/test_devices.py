"""Models on devices, over a real ssh server on the loopback interface: what is measured, what fails, and what stays behind."""

from __future__ import annotations

import json
import math
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from actx.custom_ops import cpu
from actx.exporter import Form, RuntimeOptions, check, export, profile
from actx.exporter.devices import Device, find_devices
from actx.exporter.devices.config import find_device
from actx.exporter.devices.link import connect
from actx.exporter.devices.remote import Depot, RemoteRuntime
from actx.exporter.devices.sweep import profile_all, raise_for
from actx.exporter.errors import ActxError, TargetUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporter.devices.conftest import Actx
    from tests.exporter.devices.server import Server

ONE = RuntimeOptions(threads=1)
NATIVE = "model.ort-cpu.onnx"


def test_a_check_finds_what_it_finds_here(devices: Server, model: Path, bundle: Path) -> None:
    here, there = (check(model, bundle, options=ONE, device=device) for device in (None, "second"))
    assert there.graph == here.graph == NATIVE
    # The same machine, the same ONNX Runtime, the same graphs.
    assert there.drift == here.drift
    assert [site.name for site in there.sites] == [site.name for site in here.sites]
    assert [site.added_db for site in there.sites] == [site.added_db for site in here.sites]
    assert there.runtime["device"] == {
        "name": "second", "address": "ssh://second", "model": there.runtime["device"]["model"],
        "architecture": os.uname().machine, "libc": there.runtime["device"]["libc"],
    }  # fmt: skip
    assert devices.left("second") == []


def test_a_profile_is_measured_there(devices: Server, model: Path, bundle: Path) -> None:
    done: list[tuple[int, int]] = []
    report = profile(model, bundle, runs=2, options=ONE, device="first", progress=lambda *step: done.append(step))
    assert (report.graph, report.runs, done) == (NATIVE, 2, [(1, 2), (2, 2)])
    assert report.original.runs == report.artifact.runs >= 6
    assert 0 < report.artifact.min <= report.artifact.p50
    for start in (report.original_startup, report.artifact_startup):
        assert start.load > 0
        assert start.peak_memory is not None
        assert start.peak_memory > 0
    assert [node.op_type for node in report.artifact_nodes.nodes].count("Spline") == 3
    assert set(report.artifact_nodes.sites) == set(report.original_nodes.sites)
    runtime = report.runtime
    assert runtime["device"]["name"] == "first"
    assert runtime["options"]["threads"] == runtime["threads_used"] == 1
    assert runtime["options"]["disabled_optimizers"] == []
    assert len(runtime["conditions"]["during"]) == 2
    energy = runtime["energy_per_run"]
    assert (energy["missing"] is None) == (energy["original_joules"] is not None)
    json.dumps(report.to_dict(), allow_nan=False)
    assert devices.left("first") == []


def test_the_command_prints_the_device(devices: Server, model: Path, bundle: Path, actx: Actx) -> None:
    done = actx("profile", model, bundle, "--runs", 1, "--threads", 1, "--device", "first")
    assert done.code == 0
    assert "first meanwhile" in done.out
    assert "energy per run" in done.out
    done = actx("check", model, bundle, "--device", "first", "--json")
    assert json.loads(done.out)["runtime"]["device"]["name"] == "first"


def test_a_connection_that_is_cut(devices: Server, model: Path, bundle: Path) -> None:
    with pytest.raises(ActxError, match="the connection to first was lost") as raised:
        profile(model, bundle, device="first", progress=lambda *_: devices.cut("first"))
    assert raised.value.exit_code == 1
    assert devices.left("first") == []


def test_a_runner_that_the_device_kills(devices: Server, model: Path, bundle: Path) -> None:
    with pytest.raises(ActxError, match="the runner on first was ended") as raised:
        profile(model, bundle, device="first", progress=lambda *_: devices.kill_worker("first"))
    assert "where memory ends" in raised.value.note
    assert devices.left("first") == []


@pytest.mark.parametrize(
    ("device", "code", "what", "remedy"),
    [
        ("stranger", 1, "the host key of stranger is not the one that ssh knows", "compare the key"),
        ("keyless", 1, "keyless does not let you in", "your public key"),
        ("absent", 4, "there is no Python on absent", "Install python3 there"),
        ("bare", 4, "bare lacks onnxruntime", "pip install onnxruntime"),
        ("small", 1, "small has no space for the models", "Make room"),
        ("ssh://127.0.0.1:1", 1, "ssh://127.0.0.1:1 cannot be reached", "without a question"),
    ],
)
def test_devices_that_are_not_as_they_should_be(
    device: str, code: int, what: str, remedy: str, devices: Server, model: Path, bundle: Path, actx: Actx
) -> None:
    done = actx("check", model, bundle, "--device", device)
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert lines[0].startswith(f"Error: {what}")
    assert lines[1].startswith("Note: ")
    assert remedy in lines[2]
    assert len(lines) == 3
    assert "/" in device or devices.left(device) == []


def test_a_sweep_ends_with_a_table_and_names_what_failed(devices: Server, model: Path, bundle: Path) -> None:
    chosen = find_devices("bench")

    def cut(name: str, *_: int) -> None:
        if name == "third":
            devices.cut(name)

    found = profile_all(chosen.devices, model, bundle, runs=2, options=ONE, progress=cut)
    assert [outcome.device.name for outcome in found] == ["first", "second", "third"]
    assert [outcome.report is None for outcome in found] == [False, False, True]
    assert found[2].error is not None
    assert found[2].error.what == "the connection to third was lost"
    with pytest.raises(ActxError, match="1 of 3 devices failed"):
        raise_for(found)
    raise_for(found[:2])
    for name in ("first", "second", "third"):
        assert devices.left(name) == []


def test_a_sweep_from_the_command_line(devices: Server, model: Path, bundle: Path, tmp_path: Path, actx: Actx) -> None:
    text = devices.toml.read_text().replace('["first", "second", "third"]', '["first", "second", "keyless"]')
    (tmp_path / "mine.toml").write_text(text)
    group = ("--device", "bench", "--devices", tmp_path / "mine.toml")
    done = actx("check", model, bundle, *group)
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "2 of 3 devices"
    assert [line.split()[0] for line in lines[2:4]] == ["first", "second"]
    assert lines[-1].startswith("keyless failed: keyless does not let you in")
    found = json.loads(actx("profile", model, bundle, "--runs", 1, *group, "--json").out)["devices"]
    assert [entry["report"] is None for entry in found] == [False, False, True]
    assert found[2]["error"]["what"] == "keyless does not let you in"
    assert actx("check", model, bundle, *group, "--save-outputs", "kept.json").code == 2
    assert actx("check", model, bundle, *group[2:]).code == 2
    everything = tmp_path / "two.toml"
    everything.write_text(text.replace(', "keyless"]', "]"))
    assert actx("check", model, bundle, *group[:3], everything, "--max-drift", 0).code == 3


@pytest.mark.parametrize("name", ["$(touch ran)", "`touch ran`;touch ran", "-oProxyCommand=touch ran", "a'b\"c"])
def test_the_name_of_a_bundle_is_no_command(
    name: str, devices: Server, model: Path, bundle: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / name
    shutil.copytree(bundle, hostile)
    assert check(model, hostile, device="first").graph == NATIVE
    assert not [file for file in (tmp_path, devices.folder) if list(file.rglob("ran"))]


@pytest.mark.parametrize("host", ["ssh://-oProxyCommand=touch${IFS}ran", "ssh://first;touch ran", "ssh://$(touch ran)"])
def test_a_host_is_no_command(
    host: str, devices: Server, model: Path, bundle: Path, tmp_path: Path, actx: Actx
) -> None:
    assert actx("check", model, bundle, "--device", host).code == 2
    assert not list(tmp_path.rglob("ran"))


def test_a_graph_that_names_a_file_outside_its_folder_is_not_sent(devices: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "inner"
    folder.mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "m.onnx")
    with connect(find_device("first")) as link, pytest.raises(ActxError, match="outside its own folder"):
        RemoteRuntime(Depot(link), ONE).open(folder / "m.onnx")


def test_sessions_there_are_as_sessions_here(devices: Server, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", None]) for name in "xyz"]
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[2:])
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    feeds = {"x": np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float16)}
    with connect(find_device("first")) as link:
        runtime = RemoteRuntime(Depot(link), ONE)
        here, there = ONE.open(file, ["y"]), runtime.open(file, ["y"])
        assert (there.inputs, there.outputs) == (here.inputs, here.outputs)
        for names in (None, ["y"]):
            mine, theirs = here.run(feeds, names), there.run(feeds, names)
            assert list(mine) == list(theirs)
            for name, array in mine.items():
                np.testing.assert_array_equal(array, theirs[name])
        assert there.timer(feeds)() > 0
        for session in (here, there):
            with pytest.raises(ActxError, match="the model failed to run on the data"):
                session.run({})
        with pytest.raises(ActxError, match="has no value named 'nothing'"):
            runtime.open(file, ["nothing"])
        with pytest.raises(ActxError, match="does not exist"):
            runtime.open(tmp_path / "absent.onnx")


def test_kernels_are_those_that_fit(
    devices: Server, model: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = check(model, bundle, device="first", kernels=False)
    assert plain.graph == "model.onnx"
    other = check(model, bundle, device="other")
    assert other.graph == "model.onnx"
    assert any("there are none for i686" in note for note in other.notes), "it says so"
    with pytest.raises(TargetUnavailable, match="there are no kernels for other"):
        check(model, bundle, device="other", kernels=True)
    monkeypatch.setattr(cpu, "find", lambda: None)
    untrusted = check(model, bundle, device="first")
    assert untrusted.graph == "model.onnx"
    assert any("--trust was not given" in note for note in untrusted.notes)
    assert check(model, bundle, device="first", trust=True).graph == NATIVE
    broken = tmp_path / "libactx_ops.so"
    broken.write_bytes(next(bundle.glob("kernels/*/*.so")).read_bytes()[:1000])
    monkeypatch.setattr(cpu, "find", lambda: broken)
    assert "it was cut short" in " ".join(check(model, bundle, device="first").notes)


def test_what_runs_elsewhere_is_refused(devices: Server, model: Path, tmp_path: Path) -> None:
    out = export(
        model, tmp_path / "out", target="openvino", form=Form.parse("relu"), measure_drift=False, measure_latency=False
    )
    with pytest.raises(TargetUnavailable, match="is for openvino, and cannot be run on first"):
        profile(model, out.path, device="first")
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"x")
    with pytest.raises(TargetUnavailable, match="is an engine"):
        profile(model, engine, device="first")
    assert math.isfinite(check(model, out.path / "model.onnx", device=find_device("first")).drift)


def test_a_device_needs_no_file(devices: Server, model: Path, bundle: Path) -> None:
    """What ssh needs is in its own configuration; the Python is the one that the login finds."""
    assert find_devices("ssh://first").devices == (Device("ssh://first", find_device("first").address),)
