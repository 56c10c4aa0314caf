"""The configuration of endpoints: what is written for each machine, and that the genuine agent takes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from facilities.globus.agents import endpoint_environment, missing_agent_programs
from hypothesis import given
from hypothesis import strategies as st

from apps.trust.policy_file import read_policy
from site_configs.library.resolve import available, resolve_site
from site_configs.library.site import Site
from workflows import setup_site
from workflows.checks.endpoint_script import endpoint_script
from workflows.globus.setup.checklist import LEAST_TORCH, TORCH_BEFORE, torch_build
from workflows.globus.setup.template import (
    VALUE_PATTERN,
    EndpointOptions,
    schema,
    training_template,
    user_endpoint_config,
)

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[4] / "docs"
SCRIPT = "endpoints.sh"  # the same at every machine but for a folder, so there is one golden file of it
ELSEWHERE = "/data/ada/crossfed"
STORAGE = {
    "aurora": "/flare/ABC/crossfed",
    "frontier": "/lustre/orion/abc123/proj-shared/crossfed",
    "perlmutter": "/pscratch/sd/a/ada/crossfed",
    "perlmutter_80gb": "/pscratch/sd/a/ada/crossfed",
    "polaris": "/eagle/ABC/crossfed",
}
MORE: dict[str, list[str]] = {
    "slurm": [
        "partition=gpu",
        "qos=long",
        "account=abc",
        "nodes=2",
        "walltime=90m",
        "gpus=2",
        "cores=16",
        "ranks_per_node=2",
        "memory_gb=64",
        "options=[--constraint=a100]",
        "setup='module load cuda\\necho ${#HOME} {{ x }}'",
        "command_environment={SLURM_CONF: /etc/slurm.conf}",
    ],
    "pbs": ["queue=gpu", "nodes=2", "walltime=1h", "gpus=4", "cores=32", "select=system=x"],
    "local": ["threads=2", "carrier=shared"],
}


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own login and key out of the tests."""
    key = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    monkeypatch.setattr("workflows.setup_site.driver_key", lambda: key)
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path / "login"))
    monkeypatch.setattr("workflows.globus.setup.policy.VALID", date(2027, 6, 30) - datetime.now(UTC).date())


def arguments(machine: str) -> list[str]:
    """Settings of a machine on the command line."""
    root = STORAGE.get(machine, ELSEWHERE)
    sets = [f"storage_root={root}", f"python_env={Path(root).parent}/env"]
    sets += MORE.get(machine, ["account=ABC", "nodes=2", "walltime=2h"])
    if machine in ("slurm", "pbs"):
        sets = [text.replace("setup='", 'setup="').replace("{{ x }}'", '{{ x }}"') for text in sets]
    return [machine, *(word for text in sets for word in ("--set", text))]


def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def written(machine: str, folder: Path, *more: str) -> Path:
    assert setup_site.main([*arguments(machine), "--out", str(folder / machine), *more]) == 0
    return folder / machine


def template(folder: Path, endpoint: str = "train") -> str:
    return (folder / endpoint / "user_config_template.yaml.j2").read_text()


# -- what is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["polaris", "frontier", "slurm", "local"])
def test_golden_files(machine: str, tmp_path: Path) -> None:
    """The files as last reviewed; CROSSFED_WRITE_GOLDEN=1 writes them again."""
    folder = written(machine, tmp_path)
    script = (folder / SCRIPT).read_text().replace(f"{Path(STORAGE.get(machine, ELSEWHERE)).parent}/", "/SITE/")
    (folder / SCRIPT).unlink()
    if os.environ.get("CROSSFED_WRITE_GOLDEN") == "1":
        shutil.copytree(folder, GOLDEN / machine, dirs_exist_ok=True)
        (GOLDEN / SCRIPT).write_text(script)
    assert script == (GOLDEN / SCRIPT).read_text()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(str(p.relative_to(GOLDEN / machine)) for p in (GOLDEN / machine).rglob("*") if p.is_file())
    for name in names:
        assert (folder / name).read_text() == (GOLDEN / machine / name).read_text(), name


def test_the_written_policy_is_one_and_the_documents_show_it(tmp_path: Path) -> None:
    folder = written("polaris", tmp_path)
    policy = read_policy(folder / "crossfed-site.yaml")
    assert (folder / "crossfed-site.yaml").stat().st_mode & 0o777 == 0o600
    assert policy.root == "/eagle/ABC/crossfed" and policy.device == "cuda" and policy.launch is not None
    assert policy.launch[0] == "mpiexec" and policy.models == () and policy.metrics == ("losses",)
    assert (GOLDEN / "polaris" / "crossfed-site.yaml").read_text() in (DOCS / "policy.md").read_text()
    for endpoint in ("train", "files"):
        text = template(folder, endpoint)
        assert "unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET" in text
        assert "export CROSSFED_SITE_POLICY=/eagle/ABC/crossfed-endpoints/polaris/crossfed-site.yaml\n" in text


def test_the_policy_names_what_a_campaign_uses(tmp_path: Path) -> None:
    campaign = tmp_path / "c.yaml"
    entry = {"config": "local", "storage_root": "/data/cf", "python_env": "/data/env", "data": "/data/records"}
    campaign.write_text(
        yaml.safe_dump({"model": {"source": "tiny"}, "sites": {"aurora": {**entry, "carrier": "copy"}}})
    )
    out = tmp_path / "out"
    assert setup_site.main(["--campaign", str(campaign), "--site", "aurora", "--out", str(out)]) == 0
    policy = read_policy(out / "crossfed-site.yaml")
    assert policy.data == ("/data/records",) and policy.models is not None
    assert [model.source for model in policy.models] == ["tiny"]


def test_the_function_that_endpoints_accept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = written("polaris", tmp_path) / "files" / "config.yaml"
    assert yaml.safe_load(core.read_text())["allowed_functions"] == []
    assert "The endpoints accept no function yet" in capsys.readouterr().out
    chosen = "11111111-2222-3333-4444-555555555555"
    for endpoint in ("train", "files"):
        core = written("polaris", tmp_path, "--function", chosen) / endpoint / "config.yaml"
        assert yaml.safe_load(core.read_text())["allowed_functions"] == [chosen]


@pytest.mark.parametrize("machine", available())
def test_every_machine_gets_its_files(machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(machine, tmp_path)
    core = yaml.safe_load((folder / "train" / "config.yaml").read_text())
    assert core["debug"] is False and core["amqp_port"] == 443 and "engine" not in core
    assert stat.S_IMODE((folder / "train").stat().st_mode) == 0o700
    assert os.access(folder / "endpoints.sh", os.X_OK)
    assert "Follow " in capsys.readouterr().out
    agent = f"{Path(STORAGE.get(machine, '/data/ada/crossfed')).parent}/globus-agent/bin"
    for endpoint in ("train", "files"):
        text = template(folder, endpoint)
        assert agent in text and "max_workers_per_node: 1" in text and "max_retries_on_system_failure: 0" in text
        for here in (str(Path.cwd()), str(tmp_path), "PYTHONPATH"):  # the driver's own paths are not there
            assert here not in text
        assert not re.search(r"\b(curl|wget|pip|uv|git)\b", text)  # no network in worker_init
        for default in re.findall(r"default\((.*?)\) %}", text):
            assert default.isdigit() or default == '"null"' or re.fullmatch(r'"\\"[^"]*\\""', default)
    assert ("CROSSFED_BLOCK_END" in template(folder)) == (machine != "local")


def test_an_idle_block_is_kept_or_given_back_like_blocks(tmp_path: Path) -> None:
    kept = template(written("polaris", tmp_path))
    assert "set idle_s = idle_s | default(14400)" in kept
    assert "default(60)" in template(written("polaris", tmp_path, "--set", "blocks=per_round"))
    for given_time, idle_s in (("30m", 1800), ("3s", 3), ("90", 90), ("60", 60), ("1h", 3600)):
        assert f"idle_s | default({idle_s})" in template(written("polaris", tmp_path, "--idle", given_time))


def test_no_endpoint_for_files(tmp_path: Path) -> None:
    folder = written("polaris", tmp_path, "--no-files")
    assert not (folder / "files").exists() and "endpoints=(train)\n" in (folder / "endpoints.sh").read_text()
    assert "files_endpoint" not in (folder / "CHECKLIST.md").read_text()


def test_the_checklist_is_in_order(tmp_path: Path) -> None:
    text = (written("polaris", tmp_path) / "CHECKLIST.md").read_text()
    steps = re.findall(r"^## (\d)", text, re.MULTILINE)
    assert steps == list("123456")
    order = ("venv /eagle/ABC/globus-agent", "./endpoints.sh start", "Add a Guest Collection", "crossfed-records")
    places = [text.index(part) for part in (*order, "route: globus", "login.py --campaign")]
    assert places == sorted(places)
    pasted = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["sites"]["polaris"]
    blank = [key for key, value in pasted.items() if "UUID" in str(value)]
    uuids = {key: f"{n}1111111-0000-4000-8000-000000000000" for n, key in enumerate(blank)}
    own = {key: value for key, value in (pasted | uuids).items() if key not in ("config", "data")}
    site = resolve_site("polaris", pasted["config"], tmp_path / "run", own)
    assert site.route == "globus" and site.carrier == "globus" and user_endpoint_config(site)["nodes"] == 2
    assert not Path(pasted["data"]).is_relative_to(own["collection_folder"])  # records are not shared
    assert "    data: /eagle/ABC/crossfed-records   # optional; default: " in text
    assert "    # model: FOLDER   # optional; " in text and "    # tasks: [FAMILY]   # optional; " in text
    assert "nodes 2, walltime_s 7200 (2 h)." in text and "accepts at most 4 nodes, as many as `capacity` takes" in text
    assert schema(site)["properties"]["nodes"]["maximum"] == 4


def shell_blocks(folder: Path) -> list[str]:
    """The blocks of commands in a checklist, each as it is pasted."""
    return re.findall(r"^```bash\n(.*?)^```", (folder / "CHECKLIST.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("machine", available())
def test_every_block_of_the_checklist_is_valid_shell(machine: str, tmp_path: Path) -> None:
    for block in shell_blocks(written(machine, tmp_path)):
        read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert (read.returncode, read.stderr) == (0, ""), block


def test_a_person_and_a_service_account_have_a_block_each(tmp_path: Path) -> None:
    folder = written("polaris", tmp_path)
    person, account, start = (block for block in shell_blocks(folder) if "endpoints.sh" in block or "account" in block)
    assert person.splitlines()[0] == account.splitlines()[0] == "chmod 700 ."
    assert "login" in person and "account.env" not in person and "login" not in account
    assert [line.split("   ")[0] for line in start.splitlines()] == ["./endpoints.sh start", "./endpoints.sh status"]
    ran = subprocess.run(["bash"], input=account + "echo next", capture_output=True, text=True, cwd=folder)
    assert (ran.stdout, ran.stderr) == ("next\n", "")  # what is pasted after it is not swallowed
    written_there = (folder / "account.env").read_text()
    assert written_there == "GLOBUS_COMPUTE_CLIENT_ID=ID\nGLOBUS_COMPUTE_CLIENT_SECRET=SECRET\n"
    assert stat.S_IMODE((folder / "account.env").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("machine", sorted(STORAGE))
def test_endpoints_lie_beside_the_storage_under_the_sites_name(
    machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment where compute nodes cannot write, as below /global/common/software, does not lead there."""
    folder = written(machine, tmp_path, "--set", "python_env=/global/common/software/m1/env", "--site", "one")
    there = f"{Path(STORAGE[machine]).parent}/crossfed-endpoints/one"
    assert f"ssh HOST mkdir -p {there} && rsync -a {folder}/ HOST:{there}/\n" in capsys.readouterr().out
    text = (folder / "CHECKLIST.md").read_text()
    assert f"`{there}`" in text and "/global/common/software/m1/endpoints" not in text


ANY_BUILD = "any build works (the CPU build is the smallest)", "which of the three is not `None` does not matter"


@pytest.mark.parametrize(
    ("machine", "sets", "build", "shown"),
    [
        ("polaris", (), "the CUDA build", "`cuda` is not `None`"),
        ("perlmutter_80gb", (), "the CUDA build", "`cuda` is not `None`"),
        ("frontier", (), "the ROCm build", "`hip` is not `None`"),
        ("aurora", (), "the XPU build", "`xpu` is not `None`"),
        ("slurm", (), "the CUDA build, or the ROCm build for AMD devices", "`cuda` (ROCm: `hip`) is not `None`"),
        ("slurm", ("--set", "device=xpu"), "the XPU build", "`xpu` is not `None`"),
        (
            "pbs",
            ("--set", "device=cpu"),
            "any build works (the CPU build is the smallest)",
            "which of the three is not `None` does not matter",
        ),
        (
            "local",
            (),
            "any build works (the CPU build is the smallest)",
            "which of the three is not `None` does not matter",
        ),
    ],
)
def test_the_build_of_torch_is_that_of_the_devices(
    machine: str, sets: tuple[str, ...], build: str, shown: str, tmp_path: Path
) -> None:
    request = setup_site.requested(setup_site.parse([*arguments(machine), *sets]))
    assert torch_build(setup_site.made(request), machine) == (build, shown)
    text = (written(machine, tmp_path, *sets) / "CHECKLIST.md").read_text()
    assert f"of this machine: {build}. The line shows the version, and {shown}.\n" in text


def test_torch_is_shown_before_and_after_the_project_is_installed(tmp_path: Path) -> None:
    blocks = shell_blocks(written("aurora", tmp_path))[:3]
    assert [block.splitlines()[-1].split("   ")[0] for block in blocks] == ["show_torch"] * 3
    assert "pip install -e ." in blocks[2] and "pip" not in blocks[0] + blocks[1]
    assert not any("is_available" in block or "||" in block for block in blocks)  # no device on a login node
    asked = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"torch>={LEAST_TORCH},<{TORCH_BEFORE}" in asked


def test_the_line_about_torch_is_right(tmp_path: Path) -> None:
    """With the installed torch, called as the checklist calls it."""
    lines = shell_blocks(written("polaris", tmp_path))[0].splitlines()
    function = next(line for line in lines if line.startswith("show_torch()"))
    here = function.replace("/eagle/ABC/env/bin/python", sys.executable)
    shown = subprocess.run(["bash", "-c", f"{here}\nshow_torch"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"{re.escape(version('torch'))} cuda \S+ hip \S+ xpu \S+\n", shown)


def test_from_a_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = tmp_path / "c.yaml"
    campaign.write_text(
        "sites:\n  argonne: {config: polaris, route: globus, account: ABC, nodes: 2, storage_root: /eagle/ABC/cf,"
        " python_env: /eagle/ABC/env, tasks: [chemistry], data: /eagle/ABC/records,"
        " model: /eagle/ABC/model}\n  other: {config: local}\n"
    )
    take = ["--campaign", str(campaign), "--out", str(tmp_path / "out")]
    assert setup_site.main([*take, "--site", "argonne", "--set", "nodes=3"]) == 0
    assert "set nodes = nodes | default(3)" in template(tmp_path / "out") and "cf-argonne" in template(tmp_path / "out")
    assert setup_site.main(take) == 2
    assert "no --site NAME. Its sites are argonne, other" in capsys.readouterr().err
    assert setup_site.main([*take, "--site", "nowhere"]) == 2
    assert "there is no site nowhere. Its sites are argonne, other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name a machine, or --campaign FILE --site NAME"),
        (["polris"], "did you mean 'polaris'"),
        (["polaris"], "polaris needs account .*--set account=VALUE --set storage_root=VALUE"),
        (["local", "--set", "storage_root=/d"], "local: route: globus needs python_env"),
        (["local", "--set", "python_env=/e"], "local: route: globus needs storage_root"),
        (["local", "--set", "storage_root=/d", "--set", "python_env=/e", "--idle", "x"], "--idle x: not a duration"),
        ([*arguments("polaris"), "--idle", "3"], "--idle 3: it has no unit. Write 3s, 3m or 3h"),
        (["polaris", "--set", "account"], "write KEY=VALUE"),
        (
            ["local", "--set", "storage_root=/d", "--set", "python_env=/d-exchange/env"],
            "local: python_env: /d-exchange/env and /d-exchange, which .* Put it beside /d-exchange",
        ),
        (
            ["local", "--set", "storage_root=/d", "--set", "python_env=/e", "--agent", "/d-exchange/agent"],
            "local: --agent: /d-exchange/agent and /d-exchange, which .* Put it beside /d-exchange",
        ),
        (
            [
                "local",
                *sets(
                    "storage_root=/d",
                    "python_env=/e",
                    f"collection={setup_site.NO_ENDPOINT_YET}",
                    "collection_folder=/d",
                ),
            ],
            "local: storage_root: /d and /d, which .* Set storage_root to a folder beside it",
        ),
    ],
)
def test_mistakes_are_reported_in_a_line(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup_site.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("seen", ["carrier=copy", "collection=05d2c76a-e867-4f67-aa57-76edeb0beda0"])
def test_code_may_lie_in_what_no_guest_collection_shows(seen: str, tmp_path: Path) -> None:
    sets = ["account=ABC", "storage_root=/eagle/ABC", "python_env=/eagle/ABC/env", seen]
    given = [word for text in sets for word in ("--set", text)]
    assert setup_site.main(["polaris", *given, "--out", str(tmp_path / "out")]) == 0


def test_a_machine_with_another_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\nfrom site_configs.library.site import Site\n"
        "def site(name: str, run_dir: Path, *, storage_root: Path) -> Site:\n"
        "    return Site(name=name, machine='own', route='local', storage_root=storage_root, provider=lambda i: 3)\n"
    )
    given = [
        str(tmp_path / "own.py"),
        "--set",
        "storage_root=/d",
        "--set",
        "python_env=/e",
        "--out",
        str(tmp_path / "o"),
    ]
    assert setup_site.main(given) == 2
    assert "an endpoint can be set up for PBS, Slurm and single machines, not for int" in capsys.readouterr().err


# -- what a campaign sends --------------------------------------------------------------------------------------


def site_of(machine: str, **settings: Any) -> Site:
    root = STORAGE.get(machine, ELSEWHERE)
    known: dict[str, Any] = {"storage_root": root, "python_env": "/env", "route": "globus", "carrier": "copy"}
    known["endpoint"] = setup_site.NO_ENDPOINT_YET
    known |= {} if machine == "local" else {"account": "ABC", "walltime": "2h"}
    return resolve_site("x", machine, Path("/runs/r"), {**known, **settings})


@pytest.mark.parametrize(
    ("machine", "settings", "sent"),
    [
        ("polaris", {"nodes": 2}, {"account": "ABC", "queue": "capacity", "nodes": 2, "walltime_s": 7200}),
        ("polaris", {"nodes": 12}, {"account": "ABC", "queue": "prod", "nodes": 12, "walltime_s": 7200}),
        ("frontier", {"walltime": "6h"}, {"account": "ABC", "partition": "extended", "nodes": 1, "walltime_s": 21600}),
        (
            "frontier",
            {"queue": "debug"},
            {"account": "ABC", "partition": "batch", "qos": "debug", "nodes": 1, "walltime_s": 7200},
        ),
        ("perlmutter", {}, {"account": "ABC_g", "qos": "regular", "nodes": 1, "walltime_s": 7200}),
        ("slurm", {"account": ""}, {"nodes": 1, "walltime_s": 7200}),
        ("local", {}, {}),
    ],
)
def test_what_is_sent_with_each_task(machine: str, settings: dict[str, Any], sent: dict[str, Any]) -> None:
    site = site_of(machine, **settings)
    assert user_endpoint_config(site) == sent
    assert set(sent) <= set(schema(site)["properties"])


@given(st.text(max_size=70))
def test_no_value_ends_a_line_of_a_script(text: str) -> None:
    allowed = re.search(VALUE_PATTERN.replace("$", r"\Z"), text) is not None
    assert not allowed or not re.search(r"[\s\"'`$;&|<>(){}#\\]", text)


# -- the supervisor ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_supervisor_is_sound_shell(tmp_path: Path) -> None:
    script = written("polaris", tmp_path) / "endpoints.sh"
    assert subprocess.run(["shellcheck", str(script)], capture_output=True, text=True).stdout == ""


# -- the genuine agent ------------------------------------------------------------------------------------------

RENDER = """
import json, os, pathlib, pwd, sys, types
import parsl.addresses
parsl.addresses.address_by_interface = lambda ifname: f"address of {ifname}"
from globus_compute_endpoint.endpoint.config import utils
folder, values = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
path = folder / "user_config_template.yaml.j2"
user = types.SimpleNamespace(local_user_record=pwd.getpwuid(os.getuid()), matched_identity="0")
core = utils.load_config_yaml((folder / "config.yaml").read_text())
text = utils.render_config_user_template(
    core, utils.load_user_config_template(path), path, user,
    utils.load_user_config_schema(folder / "user_config_schema.json"), values, {},
)
child = utils.load_config_yaml(text)
engine, provider = child.engine, child.engine.provider
scripts, commands = pathlib.Path(sys.argv[3]), []
provider.script_dir = str(scripts)
def execute(command, *rest):
    commands.append(command)
    return 0, "Submitted batch job 1", ""
provider.execute_wait = execute
script = ""
if hasattr(provider, "walltime"):
    provider.submit("the pool", 1, "name")
    script = next(p for p in scripts.iterdir()).read_text()
executor = engine.executor
print(json.dumps({
    "core": type(core).__name__, "engine": type(engine).__name__, "provider": type(provider).__name__,
    "launcher": type(provider.launcher).__name__, "launched": provider.launcher("pool", 1, 3),
    "workers": executor.max_workers_per_node, "retries": engine.max_retries_on_system_failure,
    "address": executor.address, "encrypted": executor.encrypted, "drain": executor.drain_period,
    "heartbeats": [executor.heartbeat_period, executor.heartbeat_threshold],
    "idle": engine._job_status_kwargs, "soft": child.idle_heartbeats_soft, "hard": child.idle_heartbeats_hard,
    "blocks": [provider.init_blocks, provider.min_blocks, provider.max_blocks],
    "worker_init": provider.worker_init, "script": script, "command": commands[-1:], "debug": core.debug,
}))
engine.executor.provider = None
os._exit(0) if not sys.stdout.flush() else None
"""


def rendered(folder: Path, endpoint: str, scratch: Path, **values: Any) -> dict[str, Any]:
    """What the agent's own code makes of the files, and the batch script that its provider writes."""
    missing = [name for name in missing_agent_programs() if "globus-compute-endpoint" in name]
    if missing:
        pytest.skip(f"needs the endpoint agent: {', '.join(missing)}")
    (scratch / "scripts").mkdir(exist_ok=True)
    for path in (scratch / "scripts").iterdir():
        path.unlink()
    python = endpoint_environment() / "bin" / "python"
    ended = subprocess.run(
        [str(python), "-c", RENDER, str(folder / endpoint), json.dumps(values), str(scratch / "scripts")],
        capture_output=True,
        text=True,
        cwd=scratch,
        env={"PATH": os.environ["PATH"], "HOME": str(scratch)},
    )
    if not ended.stdout.strip():
        raise ValueError(ended.stderr[-2000:])
    return json.loads(ended.stdout.strip().splitlines()[-1])


@pytest.mark.globus
@pytest.mark.parametrize("machine", available())
def test_the_agent_takes_the_files_of_every_machine(machine: str, tmp_path: Path) -> None:
    folder = written(machine, tmp_path)
    found = rendered(folder, "train", tmp_path)
    assert (found["core"], found["engine"]) == ("CoreEndpointConfig", "GlobusComputeEngine")
    assert (found["workers"], found["retries"], found["encrypted"], found["debug"]) == (1, 0, True, False)
    assert found["blocks"] == [0, 0, 1] and (found["launcher"], found["launched"]) == ("SimpleLauncher", "pool")
    assert found["soft"] == (14400 + 600) // 30 and found["hard"] * 30 > 14 * 24 * 3600
    assert found["idle"] == {"strategy": "simple", "strategy_period": 5, "max_idletime": 14400}
    files = rendered(folder, "files", tmp_path)
    assert (files["provider"], files["address"], files["workers"]) == ("LocalProvider", "127.0.0.1", 1)
    if machine == "local":
        assert found["provider"] == "LocalProvider" and found["address"] == "127.0.0.1" and found["drain"] is None
        return
    site = site_of(machine, **{"walltime": "2h"})
    assert found["heartbeats"] == [site.heartbeat_s, 2 * site.heartbeat_s]
    assert found["address"] == (f"address of {site.driver_interface}" if site.driver_interface else None)


def head(script: str) -> dict[str, str]:
    """The options of a batch script; of one that is given twice the last counts, as for the schedulers."""
    lines = [line.split(None, 1)[1] for line in script.splitlines() if line.startswith(("#SBATCH", "#PBS"))]
    # PBS takes -l several times, each for another resource
    keyed = (re.match(r"(-l [a-z]+|-\w|--[\w-]+)[= ]?(.*)", line) for line in lines)
    return {found[1]: found[2].removeprefix("=") for found in keyed if found}


@pytest.mark.globus
@pytest.mark.parametrize("machine", [machine for machine in available() if machine != "local"])
def test_the_agents_batch_script_asks_for_what_ours_does(machine: str, tmp_path: Path) -> None:
    found = rendered(written(machine, tmp_path), "train", tmp_path)
    request = setup_site.requested(setup_site.parse(arguments(machine)))
    provider: Any = setup_site.made(request).provider("")
    ours, theirs = head(provider.render("the pool")), head(found["script"])
    shown = endpoint_script(setup_site.made(request))
    shown_head = head(shown)
    assert set(found["worker_init"].splitlines()) <= set(shown.splitlines())
    for own in ("-N", "-o", "-e", "--job-name", "--output", "--error"):  # names of files
        ours.pop(own, None), theirs.pop(own, None), shown_head.pop(own, None)
    assert theirs == ours == shown_head
    if found["provider"] == "PBSProProvider":
        asked = next(line for line in provider.render("x").splitlines() if line.startswith("# submitted with"))
        assert found["command"][0].split()[1:-1] == asked.split()[4:-1]


@pytest.mark.globus
def test_values_of_a_campaign_reach_the_block(tmp_path: Path) -> None:
    folder = written("polaris", tmp_path)
    sent = {"account": "DEF", "queue": "debug", "nodes": 1, "walltime_s": 1800, "idle_s": 90}
    found = rendered(folder, "train", tmp_path, **sent)
    assert found["drain"] == 1800 - 180 and found["idle"]["max_idletime"] == 90
    assert "walltime=0:30:00" in found["script"] and "select=1:ncpus=64:ngpus=4" in found["script"]
    assert found["command"][0].split()[1:5] == ["-q", "debug", "-A", "DEF"]
    assert "CROSSFED_BLOCK_END=$(($(date +%s) + 1800))" in found["worker_init"]
    found = rendered(written("frontier", tmp_path), "train", tmp_path, qos="debug", partition="batch", walltime_s=90)
    assert head(found["script"]).items() >= {"--qos": "debug", "--partition": "batch", "--time": "2"}.items()


@pytest.mark.globus
@pytest.mark.parametrize(
    "sent",
    [
        {"nodes": 5},
        {"nodes": "1"},
        {"nodes": 0},
        {"walltime_s": 1},
        {"queue": "a b"},
        {"queue": "x\n#PBS -q y"},
        {"account": "$(id)"},
        {"worker_init": "id"},
        {"idle_s": -1},
        {"account": ""},
    ],
)
def test_the_agent_refuses_what_a_campaign_must_not_set(sent: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ValidationError"):
        rendered(written("polaris", tmp_path), "train", tmp_path, **sent)
    with pytest.raises(ValueError, match="ValidationError"):
        rendered(tmp_path / "polaris", "files", tmp_path, **sent)


@pytest.mark.globus
def test_shell_lines_reach_the_worker_as_they_are(tmp_path: Path) -> None:
    """Text that Jinja or YAML would read differently."""
    found = rendered(written("slurm", tmp_path), "train", tmp_path)
    lines = found["worker_init"].splitlines()
    assert "module load cuda" in lines and "echo ${#HOME} {{ x }}" in lines
    assert lines[0] == "export CROSSFED_BLOCK_END=$(($(date +%s) + 5400))"
    assert yaml.safe_load((tmp_path / "slurm" / "train" / "user_environment.yaml").read_text()) == {
        "SLURM_CONF": "/etc/slurm.conf"
    }


def test_a_template_is_made_without_a_file(tmp_path: Path) -> None:
    assert training_template(site_of("polaris"), EndpointOptions(Path("/agent"), Path("/p"))).startswith(
        "{#- crossfed: blocks of Polaris"
    )


@pytest.mark.globus
@pytest.mark.slurm
def test_slurm_takes_the_agents_script(slurm_site: Any, tmp_path: Path) -> None:
    """Two lines ask for ranks per node, the provider's own and ours: Slurm goes by the later one."""
    given = ["partition=regular", "account=fusion", "nodes=2", "cores=4", "ranks_per_node=2", "walltime=10m"]
    given += ["storage_root=/data/cf", "python_env=/data/env"]
    out = ["--out", str(tmp_path / "site")]
    assert setup_site.main(["slurm", *(word for text in given for word in ("--set", text)), *out]) == 0
    script = tmp_path / "job.sh"
    script.write_text(rendered(tmp_path / "site", "train", tmp_path)["script"])
    own = {**os.environ, **slurm_site.environment}
    asked = ["sbatch", "--hold", "--parsable", "--output=/dev/null", "--error=/dev/null", str(script)]
    taken = subprocess.run(asked, env=own, capture_output=True, text=True, cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr
    shown = subprocess.run(["scontrol", "show", "job", taken.stdout.strip()], env=own, capture_output=True, text=True)
    for fact in (
        "NumNodes=2",
        "NumTasks=4",
        "CPUs/Task=2",
        "TimeLimit=00:10:00",
        "Partition=regular",
        "Account=fusion",
    ):
        assert fact in shown.stdout, shown.stdout
