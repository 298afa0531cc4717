"""docs/deploy.md and examples/deploy: every command is one, every file is accepted, and the ways to certificates lead to certificates."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from pppml_core import cli
from pppml_core.config import resolve
from pppml_core.federation.home import init_home
from pppml_core.federation.policy import load_policy
from pppml_core.federation.site_file import engine_of, load_site_file
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
ENGINES = ("nvflare", "flower")
BIN = Path(sys.executable).parent


def section(title):
    return PAGE.split(f"\n## {title}")[1].split("\n## ")[0]


def files(blocks, text, language="yaml"):
    """name in the block's first comment -> contents; the same name twice: a list."""
    found = {}
    for block in blocks(text, language):
        name = re.match(r"# (?:added to )?(\S+?),?(?:\s|$)", block)[1]
        found.setdefault(name, []).append(block)
    return found


def parsed(line):
    """The command of a `pppml` line, with its arguments bound; raises where the command line would refuse them."""
    words, command = shlex.split(line)[1:], cli.main
    context = click.Context(cli.main, info_name="pppml")
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.get_command(context, name)
        assert command is not None, f"no such command: {name}"
        context = command.make_context(name, words, parent=context) if not isinstance(command, click.Group) else context
    return command


# -- commands --------------------------------------------------------------------------------------------------------------------------


def test_every_pppml_line_is_a_command(lines):
    text = "\n".join([PAGE, *(path.read_text(encoding="utf-8") for path in DEPLOY.rglob("compose.yaml"))])
    found = [line for line in lines(PAGE) if line.startswith("pppml ")]
    found += [f"pppml {words}" for words in re.findall(r"exec (?:site|coordinator) pppml (.+)$", text, flags=re.MULTILINE)]
    found += [line.split("/bin/")[1] for line in PAGE.splitlines() if line.startswith("ExecStart=")]
    assert len(found) > 20
    for line in found:
        parsed(line)
    for inline in re.findall(r"`(pppml [^`]*)`", PAGE):
        if len(inline.split()) > 3:
            parsed(inline.replace("\n", " "))


def test_a_job_is_submitted_with_options_that_are_there():
    """As NVFlare's administrator, whose kit no step before makes the one that is taken by itself."""
    pytest.importorskip("nvflare")
    (told,) = re.findall(r"`(nvflare job submit [^`]*)`", PAGE)
    words = shlex.split(told)
    assert words[3::2] == ["-j", "--startup-kit"]
    assert words[-1] == yaml.safe_load(re.search(r"^engine: .*environment: prod.*$", PAGE, flags=re.MULTILINE)[0])["engine"]["kit"]
    done = subprocess.run([BIN / "nvflare", *words[1:3], "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "[-j [JOB_FOLDER]]" in done.stdout
    assert "--startup-kit STARTUP_KIT]" in done.stdout


def test_containers_run_commands_that_are_there():
    for path in DEPLOY.rglob("compose.yaml"):
        for service in yaml.safe_load(path.read_text())["services"].values():
            parsed(shlex.join(["pppml", *service["command"]]))


# -- files -----------------------------------------------------------------------------------------------------------------------------


def test_the_study_is_planned(blocks, pppml, tmp_path):
    pytest.importorskip("pppml_image_set")
    pytest.importorskip("pppml_secagg_plus")
    pytest.importorskip("pppml_flower")
    found = files(blocks, section("5. The study"))
    (text,), (other,) = found["study.yaml"], found["in"]
    (tmp_path / "study.yaml").write_text(re.sub(r"(clinic_\w+): 1", r"\1: 82", text))
    (shown,) = pppml(tmp_path, "pppml plan study.yaml")
    assert "Nobody sees one site's update, only the sum" in shown
    pytest.importorskip("pppml_nvflare")
    config = {**yaml.safe_load(text), **yaml.safe_load(other)}
    assert resolve(config, registry=Registry.discover()).engine.environment == "prod"


@pytest.mark.parametrize("road", ENGINES)
def test_the_homes_are_accepted(road, blocks, tmp_path):
    """A careful hospital's files as printed: read, and bound to the engine that is installed."""
    pytest.importorskip(f"pppml_{road}")
    registry = Registry.discover()
    found = files(blocks, section("4a" if road == "nvflare" else "4b"))
    for name, where in (("clinic_north", "/srv/pppml/home/site.yaml"), ("server", "/srv/pppml/server/site.yaml")):
        home = tmp_path / name
        init_home(home, name, careful=True)
        (home / "site.yaml").write_text(found[where][0])
        assert engine_of(home, registry).use == road
        assert load_site_file(home).data == ("/data/xray" if name != "server" else None)
        assert (home / "policy.yaml").exists() == (name != "server")
        assert name == "server" or load_policy(home).min_cohort == 3


def test_the_policy_is_as_careful_as_the_page_says(tmp_path):
    policy = load_policy(init_home(tmp_path / "home", "a", careful=True).folder)
    assert (policy.min_cohort, policy.plain_updates, policy.metrics, policy.same_versions) == (3, False, "sum", True)


def test_containers_are_locked_down():
    assert {path.name for path in DEPLOY.iterdir()} == set(ENGINES)
    for engine in ENGINES:
        folder = DEPLOY / engine
        services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
        assert set(services) == {"site", "coordinator"}
        for name, service in services.items():
            assert service["image"] == f"pppml-{engine}"
            assert service["user"] not in ("0", "root")
            assert service["read_only"] is True
            assert service["init"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["profiles"] == [name]
            secret = [word for word in map(str, service.get("environment", {}).values()) if "key" in word.lower()]
            assert secret == [], "secrets never pass an environment variable"
            data = [volume for volume in service["volumes"] if "/data" in volume]
            assert all(volume.endswith(":/data:ro") for volume in data)
            assert bool(data) == (name == "site")
            assert ("ports" in service) == (name == "coordinator"), "a hospital listens to nobody"
        docker = (folder / "Dockerfile").read_text()
        users = re.findall(r"^USER (.*)$", docker, flags=re.MULTILINE)
        assert users == ["${ACCOUNT}"]
        assert docker.index("USER") < docker.index("ENTRYPOINT")
        for path in re.findall(r"/build/(\S+)", docker):
            assert (ROOT / path).exists(), path
        assert "**/*.key" in (folder / "Dockerfile.dockerignore").read_text()


# -- certificates ----------------------------------------------------------------------------------------------------------------------


def run(line, folder, **environment):
    words = shlex.split(line)
    words[0] = str(BIN / words[0]) if (BIN / words[0]).exists() else words[0]
    here = {**os.environ, "HOME": str(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    done = subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=300)
    assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="openssl and ssh-keygen are not installed")
def test_flower_gets_its_certificates_and_keys(blocks, lines, tmp_path):
    """The printed commands, and what they made in the printed files: SuperLink and node can be started with them."""
    pytest.importorskip("flwr")
    site = pytest.importorskip("pppml_flower.site")
    text = section("4b")
    made = [line for line in lines(text) if line.startswith(("openssl", "ssh-keygen"))]
    server, north = tmp_path / "server", tmp_path / "north"
    init_home(server, "server")
    init_home(north, "clinic_north", careful=True)
    shown = [run(line, server) for line in made[:4]]
    shutil.copy(server / "ca.pem", north / "ca.pem")
    shown += [run(line, north) for line in made[4:]]
    assert shown[3] == shown[5], "the fingerprint that is compared by telephone"
    assert re.fullmatch(r"sha256 Fingerprint=([0-9A-F]{2}:){31}[0-9A-F]{2}\n", shown[3], flags=re.IGNORECASE)
    verified = run("openssl verify -CAfile ca.pem -verify_hostname fl.example.org superlink.pem", server)
    assert verified == "superlink.pem: OK\n"
    run("openssl verify -CAfile ca.pem -verify_hostname localhost superlink.pem", server)

    found, registry = files(blocks, text), Registry.discover()
    (server / "site.yaml").write_text(found["/srv/pppml/server/site.yaml"][0])
    (north / "site.yaml").write_text(found["/srv/pppml/home/site.yaml"][0])
    command = site.superlink_command(server, engine_of(server, registry))
    assert str(server / "superlink.pem") in command
    assert "--enable-supernode-auth" in command
    command = site.node_command(north, engine_of(north, registry))
    assert str(north / "node.key") in command
    assert str(north / "ca.pem") in command
    assert "--insecure" not in command


def test_nvflare_gets_its_kits_and_no_private_key_travels(blocks, lines, tmp_path):
    """The printed commands of coordinator and hospital, in folders of their own; the engine accepts the kits they make."""
    pytest.importorskip("nvflare")
    kits = pytest.importorskip("pppml_nvflare.kits")
    text = section("4a")
    found = files(blocks, text)
    fl, north = tmp_path / "fl", tmp_path / "north"
    for folder, names in ((fl, ("profile.yml", "server.yml", "admin.yml")), (north, ("client.yml",))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(found[name][0])
    commands = [line for line in lines(text) if line.startswith(("nvflare", "python"))]
    at_north = [line for line in commands if "clinic_north" in line or "client.yml" in line]
    told = run(commands[0], fl)
    fingerprint = re.search(r"SHA256:([0-9A-F]{2}:){31}[0-9A-F]{2}", told)[0]

    def real(line):
        return line.replace("SHA256:7A:53:...", fingerprint)

    at_fl = [line for line in commands[1:] if line not in at_north]
    for line in at_fl:
        run(real(line), fl)
    request, sign, package, admit = at_north
    run(request, north)
    shutil.copy(north / "clinic_north" / "clinic_north.request.zip", fl)
    run(sign, fl)
    shutil.copy(fl / "clinic_north.signed.zip", north)
    with pytest.raises(AssertionError, match=r"(?i)fingerprint"):
        run(package.replace("SHA256:7A:53:...", "SHA256:" + ":".join(["00"] * 32)), north)
    run(real(package), north)
    run(admit, north)

    import zipfile

    for travelled in (fl / "clinic_north.request.zip", fl / "clinic_north.signed.zip"):
        assert not [name for name in zipfile.ZipFile(travelled).namelist() if name.endswith(".key")]
    kit = {name: Path(re.search(r"kit: \"?(\S+?)\"?}", block)[1]) for name, (block, *_) in found.items() if "kit:" in block}
    client = (north / "home" / kit["/srv/pppml/home/site.yaml"]).resolve()
    server = (fl / "server" / kit["/srv/pppml/server/site.yaml"]).resolve()
    (north / "home").mkdir()
    (fl / "server").mkdir()
    client, server = Path(os.path.normpath(client)), Path(os.path.normpath(server))
    (line,) = files(blocks, section("5. The study"))["in"]
    admin = fl / Path(yaml.safe_load(line)["engine"]["kit"]).relative_to("/srv/pppml")
    for path, role in ((client, "client"), (server, "server"), (admin, "admin")):
        assert kits.role(path) == role
    for path in (client, server):
        kits.check(path)
        assert "secure_train=true" in kits.command(path)
    assert "uid=clinic_north" in kits.command(client)
