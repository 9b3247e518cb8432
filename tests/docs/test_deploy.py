"""The files of deploy/ are right by the tools that read such files, and pass flags that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

from paceline.adapters.vllm.settings import WorkerSettings
from paceline.middleware.config import load_config
from paceline.online.learner_settings import read_settings
from snippets import ROOT, VLLM_OPTIONS, check_paceline

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
COMPOSE = ("compose.yaml", "compose.learning.yaml")
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest release whose schemas manifests are held against."""
SETTINGS = frozenset(WorkerSettings().to_env())
OURS = ("proxy", "vllm", "learner")


def variables(name: str) -> dict[str, str]:
    """The settings of an environment file."""
    lines = (DEPLOY / "systemd" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(name: str) -> Any:
    """A Compose file, its variables at their defaults, as Compose puts them in."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in text
    compose_spec.PyCompose.from_yaml(text)
    return yaml.safe_load(text)


def manifests() -> Iterator[Any]:
    """All resources but the kustomization."""
    for file in MANIFESTS:
        for resource in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if resource["kind"] != "Kustomization":
                yield resource


def containers() -> Iterator[Any]:
    """Containers of all workloads."""
    for resource in manifests():
        if resource["kind"] in ("Deployment", "StatefulSet"):
            yield from resource["spec"]["template"]["spec"]["containers"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_understood_by_systemd(unit: Path, tmp_path: Path) -> None:
    """With the program where it is here; a setting that systemd does not know fails."""
    text = unit.read_text(encoding="utf-8").replace("/opt/paceline/bin/paceline", sys.executable)
    for name, content, right in (
        ("right", text, True),
        ("wrong", text + "\n[Servce]\nX=1\n", False),
    ):
        file = tmp_path / name / unit.name
        file.parent.mkdir()
        file.write_text(content, encoding="utf-8")
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(file)],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if unit.name.split("@")[0] in line]
        assert (done.returncode == 0 and not said) == right, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_exist(unit: Path) -> None:
    """Each `paceline` in them parses, the engine's with the flags of its environment file."""
    environment = variables("vllm-0.env")
    commands = re.findall(r"^Exec\w+=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands
    for command in commands:
        text = command.replace("${MODEL}", environment["MODEL"])
        text = text.replace("$VLLM_ARGS", environment["VLLM_ARGS"])
        check_paceline(shlex.split(text))
    named = {name for name in environment if name.startswith("PACELINE_")}
    assert named <= SETTINGS
    WorkerSettings.from_env(environment)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_right(name: str) -> None:
    """By the specification, and each of our commands by its own parser."""
    services = compose(name)["services"]
    for service in services.values():
        if "build" in service and service["build"]["dockerfile"].endswith("vllm.Dockerfile"):
            check_paceline(["paceline", "vllm", *service["command"]])
        elif service["command"][0] in OURS:
            check_paceline(["paceline", *service["command"]])
        for variable in service.get("environment", {}):
            assert not variable.startswith("PACELINE_") or variable in SETTINGS, variable


def test_the_learning_engine_passes_flags_that_exist() -> None:
    """It changes the engine of compose.yaml, of which it takes the image."""
    engine = compose("compose.learning.yaml")["services"]["engine"]
    assert "build" not in engine
    check_paceline(["paceline", "vllm", *engine["command"]])
    learner = read_settings(DEPLOY / "config" / "learner.yaml")
    command = engine["command"]
    assert command[command.index("--drafter-registry") + 1] == learner.registry
    assert command[command.index("--served-model-name") + 1] == learner.model


def test_services_named_in_configurations_are_services() -> None:
    """The hosts that the proxy and the learner ask are in the same Compose file."""
    services = compose("compose.yaml")["services"]
    for name in ("proxy.yaml", "learner.yaml"):
        text = (DEPLOY / "config" / name).read_text(encoding="utf-8")
        assert set(re.findall(r"://([\w-]+):", text)) <= set(services), name


def test_only_the_proxy_is_reached_from_outside() -> None:
    """And from other machines only where LISTEN says so."""
    services = compose("compose.yaml")["services"]
    assert {name: each["ports"] for name, each in services.items() if "ports" in each} == {
        "proxy": ["127.0.0.1:8080:8080"]
    }


@pytest.mark.parametrize("release", KUBERNETES)
def test_manifests_are_right(release: str) -> None:
    """By Kubernetes' own schemas, without a field that they do not know."""
    found = list(manifests())
    assert len(found) >= 9
    for resource in found:
        kubernetes_validate.validate(resource, release, strict=True)


def test_a_wrong_manifest_is_seen() -> None:
    """A misspelt field is refused."""
    (deployment,) = [each for each in manifests() if each["kind"] == "Deployment"]
    deployment["spec"]["replicsa"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_manifests_pass_flags_and_settings_that_exist() -> None:
    """To vLLM, to the proxy and to the worker."""
    seen = set()
    for container in containers():
        seen.add(container["image"])
        if container["image"] == "paceline-vllm":
            check_paceline(["paceline", "vllm", *container["args"]])
        elif container["image"] == "paceline":
            check_paceline(["paceline", *container["args"]])
        names = {each["name"] for each in container.get("env", ())}
        assert {name for name in names if name.startswith("PACELINE_")} <= SETTINGS
    assert {"paceline", "paceline-vllm"} <= seen


def test_the_kustomization_names_what_there_is() -> None:
    """All manifests, and the files of the secret that the proxies mount."""
    folder = DEPLOY / "kubernetes"
    made = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    listed = {file.name for file in MANIFESTS} - {"kustomization.yaml"}
    assert set(made["resources"]) == listed
    (secret,) = made["secretGenerator"]
    assert all((folder / file).is_file() for file in secret["files"])
    assert {each["name"] for each in made["images"]} == {"paceline", "paceline-vllm"}
    assert f"secretName: {secret['name']}" in (folder / "proxy.yaml").read_text(encoding="utf-8")


def test_the_proxies_know_every_engine() -> None:
    """An upstream for each replica of the StatefulSet, at the name that it gets there."""
    config = load_config(DEPLOY / "kubernetes" / "config" / "proxy.yaml")
    (engine,) = [
        e for e in manifests() if e["kind"] == "StatefulSet" if e["metadata"]["name"] == "engine"
    ]
    spec = engine["spec"]
    expected = [f"http://engine-{i}.{spec['serviceName']}:8000" for i in range(spec["replicas"])]
    assert [upstream.url for upstream in config.upstreams] == expected


def test_selectors_find_their_pods() -> None:
    """Services, network policies and budgets select labels that some pod has."""
    workloads = [each for each in manifests() if each["kind"] in ("Deployment", "StatefulSet")]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads]
    for resource in manifests():
        spec = resource.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector and resource["kind"] not in ("Deployment", "StatefulSet"):
            assert selector.get("matchLabels", selector) in labels, resource["metadata"]["name"]


@pytest.mark.parametrize("folder", ["config", "kubernetes/config"])
def test_configurations_load(folder: str) -> None:
    """With the policy that they name."""
    policy = load_config(DEPLOY / folder / "proxy.yaml").load_policy()
    assert policy is not None
    assert [tenant.name for tenant in policy.tenants] == ["agents"]


@pytest.mark.parametrize("name", ["Dockerfile", "vllm.Dockerfile"])
def test_images_are_built_from_what_there_is(name: str) -> None:
    """Each names a command of ours, and copies only from the tree and from its own stages."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    assert yaml.safe_load(entry)[0] == "paceline"
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert re.findall(r"^COPY --from=(\w+)", text, re.MULTILINE) == stages
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    needed = {"pyproject.toml", "README.md", "LICENSE", "core", "caches", "middleware", "online"}
    assert not needed & set(ignored)


@pytest.mark.vllm
def test_the_listed_options_of_vllm_are_still_there() -> None:
    """Those that deploy/ and the pages pass, in the vLLM that is installed for the tests too."""
    texts = [file.read_text("utf-8") for file in [*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.env")]]
    texts.append((ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"))
    used = {word for text in texts for word in re.findall(r"--[a-z][a-z-]+", text)} & VLLM_OPTIONS
    assert "--gpu-memory-utilization" in used
    code = (
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "print(*(name for action in parser._actions for name in action.option_strings))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    assert used <= set(done.stdout.split())
